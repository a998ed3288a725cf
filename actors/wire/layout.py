"""Where things lie in a frame: the one definition, for Python and (`frame_words`) compiled code.

A header is a row of fields. A body is a row of arrays whose places follow from the header's counts;
see `frame` for the table. No numba here: engines read views before they may load it.
"""

import struct

MAGIC = b"XMSH"
VERSION = 4
HEADER_BYTES = 64

_FIELDS = {
    "magic": "4s", "version": "H", "kind": "H", "epoch": "Q", "call_id": "Q", "layer": "I",
    "rows": "I", "hidden": "I", "assignments": "I", "compute_us": "I", "coding": "I",
    "body_bytes": "Q", "sample": "q",
}  # fmt: skip
HEADER = struct.Struct("<" + "".join(_FIELDS.values()))
assert HEADER.size == HEADER_BYTES


_LONG = struct.Struct("<Q")


def offset_of(field: str) -> int:
    """Byte of the header at which a field begins."""
    names = list(_FIELDS)
    before = [_FIELDS[name] for name in names[: names.index(field)]]
    return struct.calcsize("<" + "".join(before))


_CALL_ID_AT, _BODY_BYTES_AT = offset_of("call_id"), offset_of("body_bytes")


def call_id_of(header: bytes | bytearray | memoryview) -> int:
    """As the header says; nothing is checked."""
    return int(_LONG.unpack_from(header, _CALL_ID_AT)[0])


def body_bytes_of(header: bytes | bytearray | memoryview) -> int:
    """As `call_id_of`."""
    return int(_LONG.unpack_from(header, _BODY_BYTES_AT)[0])


# Bodies. Of a CALL, the arrays that have one value for each assignment come first, then the rows;
# `coding` says how these travel: as bf16, as scales and then codes, or not in the body at all.
BF16, FP8, DEVICE = range(3)


def call_weights_at(assignments: int) -> int:
    """Byte of a CALL at which the weights begin; row_index is at 0, experts half way."""
    return 8 * assignments


def call_rows_at(assignments: int) -> int:
    """Byte of a CALL at which the rows begin, or their scales."""
    return 12 * assignments


def scales_bytes(rows: int) -> int:
    """Length of the scales in front of FP8 rows."""
    return 4 * rows


def call_bytes(rows: int, hidden: int, assignments: int, coding: int) -> int:
    values = 2 * rows * hidden
    if coding == FP8:
        values = scales_bytes(rows) + rows * hidden
    elif coding == DEVICE:
        values = 0
    return call_rows_at(assignments) + values


def sum_bytes(hidden: int, coding: int) -> int:
    """Length of one row's sum in a RESULT: fp32, or bf16 where the rows came in FP8."""
    if coding == DEVICE:
        return 0
    return 2 * hidden if coding == FP8 else 4 * hidden


def result_bytes(rows: int, hidden: int, coding: int) -> int:
    return rows * sum_bytes(hidden, coding)


def route_rows_at(assignments: int) -> int:
    """Byte of a ROUTE at which the rows begin; topk_ids are at 0, topk_weights half way."""
    return 8 * assignments


def route_bytes(rows: int, hidden: int, assignments: int) -> int:
    return route_rows_at(assignments) + 2 * rows * hidden


def routed_bytes(rows: int, hidden: int) -> int:
    return 2 * rows * hidden
