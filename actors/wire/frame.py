"""Binary frames of the data plane.

Every message is one 64-byte little-endian header and one body. The header says what the body holds,
and the body's length follows from its counts, so a reader never trusts a length by itself: a frame
whose declared body does not match its counts, or whose counts pass the limits, is refused before
any of the body is read. Where the fields and arrays lie is said in `layout`.

Bodies, all contiguous and little-endian; rows come last, so every array is aligned:
  CALL    row_index i32 [A] | expert i32 [A] | weight f32 [A] | rows bf16 [R, H]
  RESULT  sums f32 [R, H]
  ROUTE   topk_ids i32 [T, K] | topk_weights f32 [T, K] | rows bf16 [T, H]     (A = T * K)
  ROUTED  rows bf16 [T, H]
  ERROR   UTF-8 text; the header's `rows` says what kind of fault it is (`Fault`)
  ATTACH  nothing, or an offer of device memory (`device_area`), which the server has to take where
          `rows` is 1; a shared-memory segment's descriptor comes with it
  WELCOME nothing; `call_id` is the server's incarnation, `rows` is 1 where it took the offer
  PROBE   rows bf16 [R, H], whatever they are
  PROBED  the same, sent back by the server without computing

Rows of a CALL may be coded in FP8 instead, and its answer is then rounded to bf16: half the bytes.
  CALL    row_index | expert | weight | scale f32 [R] | rows e4m3 [R, H]       (value * scale)
  RESULT  sums bf16 [R, H]

Or rows and sums lie in memory of a device that both sides share (`device_area`):
  CALL    row_index | expert | weight
  RESULT  nothing

Experts travel as logical ids: a call is a pure function of (layer, expert, rows), whatever the
epoch, so a row can be sent again to any replica and a plan change needs no pause.
"""

from enum import IntEnum
from typing import NamedTuple

from actors.wire.layout import (
    HEADER,
    HEADER_BYTES,
    MAGIC,
    VERSION,
    call_bytes,
    result_bytes,
    route_bytes,
    routed_bytes,
)

__all__ = ["HEADER_BYTES", "MAGIC", "VERSION"]

MAX_ROWS = 1 << 17
MAX_HIDDEN = 1 << 16
MAX_ASSIGNMENTS = 1 << 22
MAX_BODY_BYTES = 1 << 30
MAX_ERROR_BYTES = 4096
MAX_OFFER_BYTES = 1 << 16


class FrameError(ValueError):
    """The peer sent something that is not a frame; the connection cannot be used any further."""


class FrameKind(IntEnum):
    CALL = 1
    RESULT = 2
    ROUTE = 3
    ROUTED = 4
    ERROR = 5
    ATTACH = 6
    WELCOME = 7
    PROBE = 8
    PROBED = 9


class Fault(IntEnum):
    """Why a call was answered with an ERROR."""

    REFUSED = 0
    """This server does not serve such a call, or does not hold these experts."""
    FAILED = 1
    """The call was computed and failed; the server serves others."""
    UNFIT = 2
    """The call failed, and the server cannot compute any more: it is about to exit."""


class RowCoding(IntEnum):
    """How the rows of a CALL and the sums of its RESULT travel."""

    BF16 = 0
    """Rows as the engine has them, sums in fp32: nothing is lost."""
    FP8 = 1
    """Rows in e4m3 with a scale each, sums in bf16 (see `fp8_rows`)."""
    DEVICE = 2
    """As BF16, in memory of a device (see `device_area`)."""


IN_BODY = (RowCoding.BF16, RowCoding.FP8)
"""Codings of rows that are in the body of their CALL, as between nodes."""

_KINDS = {int(kind): kind for kind in FrameKind}
_FAULTS = frozenset(Fault)
_CODINGS = {int(coding): coding for coding in RowCoding}
_CODED = (FrameKind.CALL, FrameKind.RESULT)


class Header(NamedTuple):
    """Kind and sizes of one frame.

    epoch: plan epoch the sender followed (for the record; calls do not depend on it).
    call_id: chosen by the client, repeated in the answer; in a WELCOME the server's incarnation.
    rows, hidden, assignments: R, H, A (see the module's table of bodies); in an ERROR `rows` is its
    `Fault`.
    compute_us: in answers, time the expert kernel took.
    coding: of the rows; other than BF16 only in CALL and RESULT.
    sample: in requests, id of the sampled step that they are part of (`actors.tracing.ids`); 0:
        none.
    body_bytes: length of the body; must equal what kind, coding and counts imply.
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
    coding: RowCoding = RowCoding.BF16
    sample: int = 0

    def pack_into(self, buffer: bytearray | memoryview) -> None:
        HEADER.pack_into(
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
            self.coding,
            self.body_bytes,
            self.sample,
        )


def body_bytes(
    kind: FrameKind,
    rows: int,
    hidden: int,
    assignments: int = 0,
    coding: RowCoding = RowCoding.BF16,
) -> int:
    """Length of the body that the counts of a frame imply."""
    match kind:
        case FrameKind.CALL:
            return call_bytes(rows, hidden, assignments, coding)
        case FrameKind.RESULT:
            return result_bytes(rows, hidden, coding)
        case FrameKind.ROUTE:
            return route_bytes(rows, hidden, assignments)
        case FrameKind.ROUTED | FrameKind.PROBE | FrameKind.PROBED:
            return routed_bytes(rows, hidden)
        case FrameKind.WELCOME:
            return 0
        case FrameKind.ERROR | FrameKind.ATTACH:
            raise ValueError(f"the length of the body of {kind.name} is its text's")


def unpack_header(buffer: bytes | bytearray | memoryview) -> Header:
    """Parse and check one header.

    Raises:
        FrameError: wrong magic, version or kind, counts beyond the limits, or a body length that
            does not follow from the counts.
    """
    (magic, version, kind_number, epoch, call_id, layer, rows, hidden, assignments, compute_us,
     coding_number, length, sample) = HEADER.unpack_from(buffer, 0)  # fmt: skip
    if magic != MAGIC:
        raise FrameError(f"not an ExpertMesh frame (starts with {magic!r})")
    if version != VERSION:
        raise FrameError(f"frame version {version}, this side speaks {VERSION}")
    kind = _KINDS.get(kind_number)
    if kind is None:
        raise FrameError(f"unknown frame kind {kind_number}")
    coding = _CODINGS.get(coding_number)
    if coding is None or (coding is not RowCoding.BF16 and kind not in _CODED):
        raise FrameError(f"row coding {coding_number} in a {kind.name} frame")
    if kind is FrameKind.ERROR:
        if length > MAX_ERROR_BYTES:
            raise FrameError(f"error text of {length} bytes, at most {MAX_ERROR_BYTES} are allowed")
        if rows not in _FAULTS:
            raise FrameError(f"unknown fault {rows} in an ERROR frame")
    elif kind is FrameKind.ATTACH:
        if length > MAX_OFFER_BYTES:
            raise FrameError(f"offer of {length} bytes, at most {MAX_OFFER_BYTES} are allowed")
    else:
        if rows > MAX_ROWS or hidden > MAX_HIDDEN or assignments > MAX_ASSIGNMENTS or hidden % 2:
            raise FrameError(f"counts out of bounds: {rows=} {hidden=} {assignments=}")
        implied = body_bytes(kind, rows, hidden, assignments, coding)
        if length != implied or length > MAX_BODY_BYTES:
            raise FrameError(f"body of {length} bytes where the counts imply {implied}")
    return Header(
        kind, call_id, length, epoch, layer, rows, hidden, assignments, compute_us, coding,
        sample,
    )  # fmt: skip
