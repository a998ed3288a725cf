"""Answers to expert calls: their headers, and sums written where they are sent from."""

import torch

from actors.dispatch.backend import bf16_tensor
from actors.wire.body import Floats, rows_of, sums_of
from actors.wire.frame import FrameKind, Header, RowCoding, body_bytes


def result_header(call: Header) -> Header:
    """The RESULT that answers `call`."""
    return Header(
        FrameKind.RESULT,
        call.call_id,
        body_bytes(FrameKind.RESULT, call.rows, call.hidden, coding=call.coding),
        epoch=call.epoch,
        layer=call.layer,
        rows=call.rows,
        hidden=call.hidden,
        coding=call.coding,
    )


def in_place(answer: Header, room: memoryview | None) -> Floats | None:
    """The answer's body as sums fp32 [R, H], if that is what it holds; room: None if it is gone."""
    if room is None or answer.coding is not RowCoding.BF16:
        return None
    return sums_of(room, answer.rows, answer.hidden)


def write_sums(sums: Floats, answer: Header, room: memoryview) -> None:
    """Copy sums [R, H] into the body of an answer, rounding where it asks for that."""
    if answer.coding is RowCoding.BF16:
        sums_of(room, answer.rows, answer.hidden)[:] = sums
    else:
        rounded = bf16_tensor(rows_of(room, answer.rows, answer.hidden))
        rounded.copy_(torch.from_numpy(sums))
