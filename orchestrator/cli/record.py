"""`expertmesh record`: write the expert load of a running mesh to a trace file."""

import time
from pathlib import Path

import numpy as np
import numpy.typing as npt

from orchestrator.cli.endpoint import ask, not_a_mesh
from orchestrator.errors import UserError
from orchestrator.expert_load import ExpertLoad
from orchestrator.load_trace import LoadTrace, header_line, window_line, write_npz
from placement.trace import Trace


def record(url: str, path: Path, window_s: float, windows: int | None) -> int:
    """Record `windows` windows (None: until Ctrl-C) into a .jsonl or .npz file.

    A jsonl file is written window by window, so nothing is lost when recording is cut short; an npz
    file is written at the end, also after Ctrl-C.
    """
    if path.suffix not in {".jsonl", ".npz"}:
        raise UserError(f"{path} is neither .jsonl nor .npz", "name the file with one of these")
    first = fetch_load(url)
    starts: list[float] = []
    lengths: list[float] = []
    counts: list[npt.NDArray[np.int64]] = []
    if path.suffix == ".jsonl":
        path.write_text(header_line(first.model, first.layers, first.counts.shape[1]))
    before, at_s = first.counts, time.monotonic()
    begun_s = at_s
    try:
        while windows is None or len(counts) < windows:
            time.sleep(window_s)
            now, now_s = fetch_load(url), time.monotonic()
            # A replaced shard starts counting at zero again: such a window is no loss of tokens.
            counts.append(np.maximum(now.counts - before, 0))
            starts.append(at_s - begun_s)
            lengths.append(now_s - at_s)
            before, at_s = now.counts, now_s
            if path.suffix == ".jsonl":
                with path.open("a") as file:
                    file.write(window_line(starts[-1], lengths[-1], counts[-1]))
            print(f"window {len(counts)}: {int(counts[-1].sum())} assignments", flush=True)
    except KeyboardInterrupt:
        pass
    if path.suffix == ".npz":
        shape = (len(counts), *first.counts.shape)
        stacked = np.array(counts, np.int64).reshape(shape)
        trace = Trace(stacked, np.array(starts), np.array(lengths), ("",) * len(counts))
        write_npz(path, LoadTrace(first.model, first.layers, trace))
    print(f"{len(counts)} windows in {path}")
    return 0


def fetch_load(url: str) -> ExpertLoad:
    """Counts since the mesh started. Raises UserError if no mesh answers."""
    response = ask(url, "/api/v1/expert-load")
    try:
        return ExpertLoad.from_json(response.json())
    except (ValueError, KeyError) as error:
        raise not_a_mesh(url, response) from error
