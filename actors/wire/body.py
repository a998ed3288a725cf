"""Typed numpy views over the bodies of frames; nothing is copied.

bf16 has no numpy type: such rows are seen as uint16 [.., H], the same bits. e4m3 is seen as uint8.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from actors.wire.frame import Header, RowCoding
from actors.wire.layout import call_rows_at, call_weights_at, route_rows_at, scales_bytes

Bits8 = npt.NDArray[np.uint8]
Bits16 = npt.NDArray[np.uint16]
Ints = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Fp8Rows:
    """codes: [R, H] e4m3 bits; scales: [R] fp32 (see `fp8_rows`)."""

    codes: Bits8
    scales: Floats

    def __len__(self) -> int:
        return len(self.codes)


@dataclass(frozen=True, slots=True)
class RowsElsewhere:
    """count rows that are not in the body, but in memory of a device."""

    count: int

    def __len__(self) -> int:
        return self.count


@dataclass(frozen=True, slots=True)
class CallBody:
    """row_index, experts: [A]; weights: [A] fp32; rows: [R, H], bf16 bits if not in FP8."""

    row_index: Ints
    experts: Ints
    weights: Floats
    rows: Bits16 | Fp8Rows | RowsElsewhere


@dataclass(frozen=True, slots=True)
class RouteBody:
    """topk_ids: [T, K]; topk_weights: [T, K] fp32; rows: [T, H] bf16 bits."""

    topk_ids: Ints
    topk_weights: Floats
    rows: Bits16


def rows_of(body: memoryview, rows: int, hidden: int, at: int = 0) -> Bits16:
    """[rows, hidden] bf16 bits from byte `at` on: also a ROUTED body, and the sums for FP8 rows."""
    return np.frombuffer(body, np.uint16, rows * hidden, at).reshape(rows, hidden)


def sums_of(body: memoryview, rows: int, hidden: int) -> Floats:
    """[rows, hidden] fp32: the body of a RESULT for bf16 rows."""
    return np.frombuffer(body, np.float32, rows * hidden).reshape(rows, hidden)


def call_body(header: Header, body: memoryview) -> CallBody:
    """Views of a CALL's arrays."""
    rows, hidden, count = header.rows, header.hidden, header.assignments
    row_index = np.frombuffer(body, np.int32, count)
    weights_at, at = call_weights_at(count), call_rows_at(count)
    experts = np.frombuffer(body, np.int32, count, weights_at // 2)
    weights = np.frombuffer(body, np.float32, count, weights_at)
    if header.coding is RowCoding.BF16:
        return CallBody(row_index, experts, weights, rows_of(body, rows, hidden, at))
    if header.coding is RowCoding.DEVICE:
        return CallBody(row_index, experts, weights, RowsElsewhere(rows))
    scales = np.frombuffer(body, np.float32, rows, at)
    at += scales_bytes(rows)
    codes = np.frombuffer(body, np.uint8, rows * hidden, at).reshape(rows, hidden)
    return CallBody(row_index, experts, weights, Fp8Rows(codes, scales))


def route_body(header: Header, body: memoryview) -> RouteBody:
    """Views of a ROUTE's three arrays; `header.assignments` is T * K."""
    tokens, count = header.rows, header.assignments
    top_k = count // tokens if tokens else 0
    at = route_rows_at(count)
    return RouteBody(
        np.frombuffer(body, np.int32, count).reshape(tokens, top_k),
        np.frombuffer(body, np.float32, count, at // 2).reshape(tokens, top_k),
        rows_of(body, tokens, header.hidden, at),
    )
