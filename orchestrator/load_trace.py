"""Trace files of expert load: what `record` writes, and `plan` and `simulate` read.

The content is `placement.trace.Trace`, in either of its two forms by the file's name: `.npz`
(arrays) or `.jsonl` (a header, then one line per window; complete up to the last whole line). The
file adds whose counts they are: `model`, and `layer_indices`, the model's layer of each row.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.errors import UserError
from placement.trace import SCHEMA, Trace, from_arrays, from_records, to_arrays


@dataclass(frozen=True, slots=True, eq=False)
class LoadTrace:
    """model: name it was served under; layers: [L] the model's layer indices; trace: the counts."""

    model: str
    layers: tuple[int, ...]
    trace: Trace

    def total(self) -> npt.NDArray[np.float64]:
        """[L, E] assignments over all windows."""
        return self.trace.counts.sum(axis=0).astype(np.float64)


def header_line(model: str, layers: tuple[int, ...], num_experts: int) -> str:
    """First line of a jsonl trace."""
    head = {
        "schema": SCHEMA,
        "layers": len(layers),
        "experts": num_experts,
        "model": model,
        "layer_indices": list(layers),
    }
    return json.dumps(head) + "\n"


def window_line(start_s: float, window_s: float, counts: npt.NDArray[np.int64]) -> str:
    """Line of one window. start_s: since the recording began; counts: [L, E]."""
    record = {"start_s": round(start_s, 3), "window_s": round(window_s, 3)}
    return json.dumps(record | {"counts": counts.tolist()}) + "\n"


def write_npz(path: Path, recorded: LoadTrace) -> None:
    arrays = to_arrays(recorded.trace)
    arrays["model"] = np.array(recorded.model)
    arrays["layer_indices"] = np.array(recorded.layers, np.int32)
    np.savez_compressed(path, allow_pickle=False, **arrays)


def read_trace(path: Path) -> LoadTrace:
    """Read either form.

    Raises:
        UserError: there is no such file, or it is no trace; names the file and what is wrong.
    """
    try:
        recorded = _read_npz(path) if path.suffix == ".npz" else _read_jsonl(path)
    except FileNotFoundError:
        raise UserError(
            f"trace {path} does not exist", "record one with `expertmesh record`"
        ) from None
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise UserError(f"{path} is not a load trace ({error})") from error
    if not len(recorded.trace.counts):
        raise UserError(f"{path} holds no window", "record for longer")
    return recorded


def _read_npz(path: Path) -> LoadTrace:
    with np.load(path, allow_pickle=False) as data:
        arrays = dict(data)
    layers = tuple(int(layer) for layer in arrays.pop("layer_indices"))
    return _checked(str(arrays.pop("model")), layers, from_arrays(arrays))


def _read_jsonl(path: Path) -> LoadTrace:
    records = list(_whole_lines(path))
    if not records:
        raise ValueError("it is empty")
    head = records[0]
    trace = from_records(records)
    return _checked(str(head["model"]), tuple(head["layer_indices"]), trace)


def _whole_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Records of a file whose last line may have been cut short."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            if line.endswith("\n"):
                yield json.loads(line)


def _checked(model: str, layers: tuple[int, ...], trace: Trace) -> LoadTrace:
    if len(layers) != trace.counts.shape[1]:
        raise ValueError(f"{len(layers)} layer indices for {trace.counts.shape[1]} layers")
    return LoadTrace(model, layers, trace)
