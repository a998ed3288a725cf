"""Binary frames of the data plane.

Every message is one 64-byte little-endian header and one body. The header says what the body holds,
and the body's length follows from its counts, so a reader never trusts a length by itself: a frame
whose declared body does not match its counts, or whose counts pass the limits, is refused before
any of the body is read.

Bodies, all contiguous and little-endian:
  CALL    rows bf16 [R, H] | row_index i32 [A] | expert i32 [A] | weight f32 [A]
  RESULT  sums f32 [R, H]
  ROUTE   rows bf16 [T, H] | topk_ids i32 [T, K] | topk_weights f32 [T, K]     (A = T * K)
  ROUTED  rows bf16 [T, H]
  ERROR   UTF-8 text
  ATTACH  nothing; a shared-memory segment's descriptor comes with it

Experts travel as logical ids: a call is a pure function of (layer, expert, rows), whatever the
epoch, so a row can be sent again to any replica and a plan change needs no pause.
"""

import struct
from enum import IntEnum
from typing import NamedTuple

MAGIC = b"XMSH"
VERSION = 1
HEADER_BYTES = 64
MAX_ROWS = 1 << 17
MAX_HIDDEN = 1 << 16
MAX_ASSIGNMENTS = 1 << 22
MAX_BODY_BYTES = 1 << 30
MAX_ERROR_BYTES = 4096

_LAYOUT = struct.Struct("<4sHHQQIIIIIIQ8x")
assert _LAYOUT.size == HEADER_BYTES


class FrameError(ValueError):
    """The peer sent something that is not a frame; the connection cannot be used any further."""


class FrameKind(IntEnum):
    CALL = 1
    RESULT = 2
    ROUTE = 3
    ROUTED = 4
    ERROR = 5
    ATTACH = 6


_KINDS = {int(kind): kind for kind in FrameKind}


class Header(NamedTuple):
    """Kind and sizes of one frame.

    epoch: plan epoch the sender followed (for the record; calls do not depend on it).
    call_id: chosen by the client, repeated in the answer.
    rows, hidden, assignments: R, H, A (see the module's table of bodies).
    compute_us: in answers, time the expert kernel took.
    body_bytes: length of the body; must equal what kind and counts imply.
    """

    kind: FrameKind
    call_id: int
    body_bytes: int
    epoch: int = 0
    layer: int = 0
    rows: int = 0
    hidden: int = 0
    assignments: int = 0
    compute_us: int = 0

    def pack_into(self, buffer: bytearray | memoryview) -> None:
        _LAYOUT.pack_into(
            buffer,
            0,
            MAGIC,
            VERSION,
            self.kind,
            self.epoch,
            self.call_id,
            self.layer,
            self.rows,
            self.hidden,
            self.assignments,
            self.compute_us,
            0,
            self.body_bytes,
        )


def body_bytes(kind: FrameKind, rows: int, hidden: int, assignments: int) -> int:
    """Length of the body that the counts of a frame imply."""
    match kind:
        case FrameKind.CALL | FrameKind.ROUTE:
            extra = 12 if kind is FrameKind.CALL else 8
            return rows * hidden * 2 + assignments * extra
        case FrameKind.RESULT:
            return rows * hidden * 4
        case FrameKind.ROUTED:
            return rows * hidden * 2
        case FrameKind.ATTACH:
            return 0
        case FrameKind.ERROR:
            raise ValueError("the length of an ERROR body is its text's")


def unpack_header(buffer: bytes | bytearray | memoryview) -> Header:
    """Parse and check one header.

    Raises:
        FrameError: wrong magic, version or kind, counts beyond the limits, or a body length that
            does not follow from the counts.
    """
    (magic, version, kind_number, epoch, call_id, layer, rows, hidden, assignments, compute_us, _,
     length) = _LAYOUT.unpack_from(buffer, 0)  # fmt: skip
    if magic != MAGIC:
        raise FrameError(f"not an ExpertMesh frame (starts with {magic!r})")
    if version != VERSION:
        raise FrameError(f"frame version {version}, this side speaks {VERSION}")
    kind = _KINDS.get(kind_number)
    if kind is None:
        raise FrameError(f"unknown frame kind {kind_number}")
    if kind is FrameKind.ERROR:
        if length > MAX_ERROR_BYTES:
            raise FrameError(f"error text of {length} bytes, at most {MAX_ERROR_BYTES} are allowed")
    else:
        if rows > MAX_ROWS or hidden > MAX_HIDDEN or assignments > MAX_ASSIGNMENTS or hidden % 2:
            raise FrameError(f"counts out of bounds: {rows=} {hidden=} {assignments=}")
        implied = body_bytes(kind, rows, hidden, assignments)
        if length != implied or length > MAX_BODY_BYTES:
            raise FrameError(f"body of {length} bytes where the counts imply {implied}")
    return Header(
        kind, call_id, length, epoch, layer, rows, hidden, assignments, compute_us
    )  # fmt: skip
