"""Recorded expert counts as plain arrays and plain records; reading files is the caller's part.

A trace has two equal forms:

- arrays, for an npz file: `schema` int, `counts` int64 [T, L, E] tokens per window, layer and
  expert, `start_s` float64 [T] and `window_s` float64 [T] when each window began and how long it
  lasted, and `traffic_kind` str [T] ("" if not told apart);
- records, for a jsonl file: first {"schema": 1, "layers": L, "experts": E}, then one object per
  window: {"start_s": .., "window_s": .., "traffic_kind": "..", "counts": [[..E..], ..L..]}.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

SCHEMA = 1
"""Version written; others are rejected."""


@dataclass(frozen=True, slots=True)
class Trace:
    """Expert counts over time."""

    counts: NDArray[np.int64]
    """[T, L, E]"""
    start_s: NDArray[np.float64]
    """[T]"""
    window_s: NDArray[np.float64]
    """[T]"""
    traffic_kind: tuple[str, ...]
    """T names."""

    def __post_init__(self) -> None:
        if self.counts.ndim != 3:
            raise ValueError(
                f"trace: counts must have shape [windows, layers, experts], got {self.counts.shape}"
            )
        T = self.counts.shape[0]
        for name in ("start_s", "window_s", "traffic_kind"):
            if len(getattr(self, name)) != T:
                raise ValueError(f"trace: {name} must have {T} entries, one per window")
        if self.counts.size and self.counts.min() < 0:
            raise ValueError("trace: counts must be >= 0")


def to_arrays(trace: Trace) -> dict[str, NDArray[Any]]:
    """Arrays to hand to `numpy.savez`."""
    return {
        "schema": np.array(SCHEMA),
        "counts": trace.counts,
        "start_s": trace.start_s,
        "window_s": trace.window_s,
        "traffic_kind": np.array(trace.traffic_kind, dtype=np.str_),
    }


def from_arrays(arrays: Mapping[str, NDArray[Any]]) -> Trace:
    """Trace from what `numpy.load(..., allow_pickle=False)` gives; only `counts` must be there.

    Raises:
        ValueError: another schema, or arrays that do not fit together.
    """
    if "counts" not in arrays:
        raise ValueError("trace: no array named 'counts'")
    _check_schema(int(arrays["schema"]) if "schema" in arrays else SCHEMA)
    counts = _whole(arrays["counts"])
    T = counts.shape[0] if counts.ndim else 0
    return Trace(
        counts=counts,
        start_s=np.asarray(arrays.get("start_s", np.arange(T)), np.float64),
        window_s=np.asarray(arrays.get("window_s", np.ones(T)), np.float64),
        traffic_kind=tuple(str(name) for name in arrays.get("traffic_kind", np.full(T, ""))),
    )


def to_records(trace: Trace) -> Iterator[dict[str, Any]]:
    """Header, then one record per window; each fits one line of JSON."""
    _, L, E = trace.counts.shape
    yield {"schema": SCHEMA, "layers": L, "experts": E}
    for t, kind in enumerate(trace.traffic_kind):
        yield {
            "start_s": float(trace.start_s[t]),
            "window_s": float(trace.window_s[t]),
            "traffic_kind": kind,
            "counts": trace.counts[t].tolist(),
        }


def from_records(records: Iterable[Mapping[str, Any]]) -> Trace:
    """Trace from parsed lines, header first.

    Raises:
        ValueError: no header, another schema, or a window of the wrong shape, with its number.
    """
    lines = iter(records)
    header = next(lines, None)
    if header is None or "schema" not in header:
        raise ValueError("trace: the first record must be a header with 'schema'")
    _check_schema(int(header["schema"]))
    shape = (int(header["layers"]), int(header["experts"]))
    counts, start_s, window_s, kind = [], [], [], []
    for number, line in enumerate(lines):
        window = _whole(line["counts"]) if "counts" in line else np.empty(0, np.int64)
        if window.shape != shape:
            raise ValueError(f"trace: window {number} has counts {window.shape}, header {shape}")
        counts.append(window)
        start_s.append(float(line.get("start_s", number)))
        window_s.append(float(line.get("window_s", 1.0)))
        kind.append(str(line.get("traffic_kind", "")))
    stacked = np.stack(counts) if counts else np.zeros((0, *shape), np.int64)
    return Trace(stacked, np.array(start_s), np.array(window_s), tuple(kind))


def _whole(values: Any) -> NDArray[np.int64]:
    array = np.asarray(values)
    if not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"trace: counts must be whole numbers, got {array.dtype}")
    return array.astype(np.int64)


def _check_schema(schema: int) -> None:
    if schema != SCHEMA:
        raise ValueError(f"trace: schema {schema} is not supported, only {SCHEMA}")
