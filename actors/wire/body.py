"""Typed numpy views over the bodies of frames; nothing is copied.

bf16 has no numpy type: rows are seen as uint16 [.., H], the same bits.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from actors.wire.frame import Header

Bits16 = npt.NDArray[np.uint16]
Ints = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class CallBody:
    """rows: [R, H] bf16 bits; row_index, experts: [A]; weights: [A] fp32."""

    rows: Bits16
    row_index: Ints
    experts: Ints
    weights: Floats


@dataclass(frozen=True, slots=True)
class RouteBody:
    """rows: [T, H] bf16 bits; topk_ids: [T, K]; topk_weights: [T, K] fp32."""

    rows: Bits16
    topk_ids: Ints
    topk_weights: Floats


def rows_of(body: memoryview, rows: int, hidden: int) -> Bits16:
    """[rows, hidden] bf16 bits at the start of a CALL, ROUTE or ROUTED body."""
    return np.frombuffer(body, np.uint16, rows * hidden).reshape(rows, hidden)


def sums_of(body: memoryview, rows: int, hidden: int) -> Floats:
    """[rows, hidden] fp32: the body of a RESULT."""
    return np.frombuffer(body, np.float32, rows * hidden).reshape(rows, hidden)


def call_body(header: Header, body: memoryview) -> CallBody:
    """Views of a CALL's four arrays."""
    rows, count = header.rows, header.assignments
    at = rows * header.hidden * 2
    return CallBody(
        rows_of(body, rows, header.hidden),
        np.frombuffer(body, np.int32, count, at),
        np.frombuffer(body, np.int32, count, at + 4 * count),
        np.frombuffer(body, np.float32, count, at + 8 * count),
    )


def route_body(header: Header, body: memoryview) -> RouteBody:
    """Views of a ROUTE's three arrays; `header.assignments` is T * K."""
    tokens, count = header.rows, header.assignments
    at = tokens * header.hidden * 2
    top_k = count // tokens if tokens else 0
    return RouteBody(
        rows_of(body, tokens, header.hidden),
        np.frombuffer(body, np.int32, count, at).reshape(tokens, top_k),
        np.frombuffer(body, np.float32, count, at + 4 * count).reshape(tokens, top_k),
    )
