"""Recorded expert load, window by window: the file between `record`, `plan` and `simulate`.

Two forms, chosen by the file's name:
  .npz    arrays counts int64 [W, L, E], layers int32 [L], window_s float64 [W]; model and schema
          as arrays of one element
  .jsonl  a first line {"schema", "model", "layers", "num_experts"}, then a line per window
          {"window_s", "counts": [L][E]}; complete up to the last whole line
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.errors import UserError

SCHEMA = 1


@dataclass(frozen=True, slots=True, eq=False)
class LoadTrace:
    """counts: int64 [W, L, E], assignments of each (layer, expert) in each window; layers: the
    model's layer indices; window_s: [W] length of each window."""

    model: str
    layers: tuple[int, ...]
    counts: npt.NDArray[np.int64]
    window_s: npt.NDArray[np.float64]

    def total(self) -> npt.NDArray[np.float64]:
        """[L, E] assignments over all windows."""
        return self.counts.sum(axis=0).astype(np.float64)


def header_line(model: str, layers: tuple[int, ...], num_experts: int) -> str:
    """First line of a jsonl trace."""
    head = {"schema": SCHEMA, "model": model, "layers": list(layers), "num_experts": num_experts}
    return json.dumps(head) + "\n"


def window_line(window_s: float, counts: npt.NDArray[np.int64]) -> str:
    """Line of one window. counts: [L, E]."""
    return json.dumps({"window_s": round(window_s, 3), "counts": counts.tolist()}) + "\n"


def write_npz(path: Path, trace: LoadTrace) -> None:
    np.savez_compressed(
        path,
        schema=np.array([SCHEMA]),
        model=np.array([trace.model]),
        layers=np.array(trace.layers, np.int32),
        counts=trace.counts,
        window_s=trace.window_s,
    )


def read_trace(path: Path) -> LoadTrace:
    """Read either form.

    Raises:
        UserError: there is no such file, or it is no trace; names the file and what is wrong.
    """
    try:
        trace = _read_npz(path) if path.suffix == ".npz" else _read_jsonl(path)
    except FileNotFoundError:
        raise UserError(
            f"trace {path} does not exist", "record one with `expertmesh record`"
        ) from None
    except (ValueError, KeyError, OSError) as error:
        raise UserError(f"{path} is not a load trace ({error})") from error
    _check(path, trace)
    return trace


def _read_npz(path: Path) -> LoadTrace:
    with np.load(path, allow_pickle=False) as data:
        if int(data["schema"][0]) != SCHEMA:
            raise ValueError(f"schema {int(data['schema'][0])}, this version reads {SCHEMA}")
        return LoadTrace(
            str(data["model"][0]),
            tuple(int(layer) for layer in data["layers"]),
            np.asarray(data["counts"], np.int64),
            np.asarray(data["window_s"], np.float64),
        )


def _read_jsonl(path: Path) -> LoadTrace:
    lines = path.read_text(encoding="utf-8").splitlines()
    if not lines:
        raise ValueError("it is empty")
    head: dict[str, Any] = json.loads(lines[0])
    if head["schema"] != SCHEMA:
        raise ValueError(f"schema {head['schema']}, this version reads {SCHEMA}")
    windows = [json.loads(line) for line in lines[1:] if line.endswith("}")]
    shape = (len(windows), len(head["layers"]), head["num_experts"])
    return LoadTrace(
        head["model"],
        tuple(head["layers"]),
        np.array([window["counts"] for window in windows], np.int64).reshape(shape),
        np.array([window["window_s"] for window in windows], np.float64),
    )


def _check(path: Path, trace: LoadTrace) -> None:
    counts = trace.counts
    if counts.ndim != 3 or counts.shape[1] != len(trace.layers):
        raise UserError(
            f"{path}: counts must be [windows, {len(trace.layers)} layers, experts], "
            f"got {list(counts.shape)}"
        )
    if len(trace.window_s) != len(counts):
        raise UserError(f"{path}: {len(counts)} windows, but {len(trace.window_s)} lengths")
    if not len(counts):
        raise UserError(f"{path} holds no window", "record for longer")
    if (counts < 0).any():
        raise UserError(f"{path}: counts below zero")
