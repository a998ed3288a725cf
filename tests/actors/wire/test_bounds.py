"""The first length, size and index beyond what fits is refused, and the last that fits is not."""

import fcntl
import logging
import os
import time

import numpy as np
import pytest

from actors.wire.body import call_body
from actors.wire.frame import (
    HEADER_BYTES,
    MAX_BODY_BYTES,
    Fault,
    FrameError,
    FrameKind,
    Header,
    body_bytes,
    unpack_header,
)
from actors.wire.link import RemoteError
from actors.wire.segment import (
    ANSWERED,
    FIRST_STATE,
    LAYOUT_VERSION,
    MAX_SLOTS,
    PAGE_BYTES,
    POSTED,
    SEALS,
    SegmentShape,
    open_segment,
)
from tests.actors.fakes import HIDDEN, running
from tests.actors.wire.serving import Client, RawSegment, is_closed_by_peer, shard_server

WAIT_S = 60.0
SHAPE = SegmentShape(2, 1, 1)


@pytest.fixture
def address(tmp_path):
    server = shard_server(f"unix:{tmp_path}/s")
    with running(server):
        yield server.addresses[0]


def post(client: RawSegment, header: Header) -> None:
    header.pack_into(client.segment.request(0))
    client.segment.words[FIRST_STATE] = POSTED
    client.ring()


def answer(client: RawSegment) -> Header:
    end_s = time.monotonic() + WAIT_S
    while client.segment.words[FIRST_STATE] != ANSWERED:
        assert time.monotonic() < end_s, "no answer"
        time.sleep(0.001)
    return unpack_header(bytes(client.segment.answer(0)[:HEADER_BYTES]))


def test_a_body_may_fill_its_slot_and_no_more(address, caplog) -> None:
    """ERROR frames, because theirs are the bodies of any length; a shard refuses them."""
    client = RawSegment(address, shape=SHAPE)
    post(client, Header(FrameKind.ERROR, 1, SHAPE.request_bytes))
    assert answer(client).kind is FrameKind.ERROR
    with caplog.at_level(logging.WARNING):
        other = RawSegment(address, shape=SHAPE)
        post(other, Header(FrameKind.ERROR, 1, SHAPE.request_bytes + 1))
        assert is_closed_by_peer(other.sock)
    assert "in a smaller slot" in caplog.text


def call(rows: int, hidden: int = HIDDEN) -> Header:
    length = body_bytes(FrameKind.CALL, rows, hidden, 1)
    return Header(FrameKind.CALL, 1, length, rows=rows, hidden=hidden, assignments=1)


def test_an_answer_may_fill_its_slot_and_no_more(address, caplog) -> None:
    fitting = SHAPE.answer_bytes // (4 * HIDDEN)
    assert fitting * 4 * HIDDEN == SHAPE.answer_bytes
    client = RawSegment(address, shape=SHAPE)
    post(client, call(fitting))
    assert answer(client).kind is FrameKind.RESULT
    with caplog.at_level(logging.WARNING):
        other = RawSegment(address, shape=SHAPE)
        post(other, call(fitting + 1))
        assert is_closed_by_peer(other.sock)
    assert "does not fit the segment" in caplog.text


@pytest.mark.parametrize("hidden", [HIDDEN - 2, HIDDEN + 2, 2 * HIDDEN])
def test_rows_of_another_size_are_refused(address, hidden: int) -> None:
    client = RawSegment(address, shape=SHAPE)
    post(client, call(1, hidden))
    header = answer(client)
    assert header.kind is FrameKind.ERROR
    text = bytes(client.segment.answer(0)[HEADER_BYTES : HEADER_BYTES + header.body_bytes])
    assert text.decode() == f"rows of {hidden} values, the model has {HIDDEN}"


@pytest.mark.parametrize(
    ("rows", "row", "expert", "reason"),
    [
        (3, 2, 7, ""),
        (3, 3, 7, r"row_index out of \[0, 3\)"),
        (3, -1, 7, r"row_index out of \[0, 3\)"),
        (3, 2, 8, r"expert out of \[0, 8\)"),
        (3, 2, -1, r"expert out of \[0, 8\)"),
    ],
)
def test_indices_are_below_their_counts(address, rows: int, row: int, expert: int, reason) -> None:
    client = Client(address)
    with client.sending(call(rows)) as body:
        body.rows[:] = 0x3F80
        body.row_index[:], body.experts[:], body.weights[:] = row, expert, 1.0
    if not reason:
        assert client.wait(1)[0].rows == rows
    else:
        with pytest.raises(RemoteError, match=reason) as caught:
            client.wait(1)
        assert caught.value.fault is Fault.REFUSED
    client.close()


@pytest.mark.parametrize("layer", [-1, 2])
def test_layers_without_experts_are_refused(address, layer: int) -> None:
    client = Client(address)
    client.post(1, layer=layer % (1 << 32))
    with pytest.raises(RemoteError, match="has no routed experts"):
        client.wait(1)
    client.close()


def test_the_body_of_a_call_is_seen_as_its_header_says() -> None:
    header = call(3)
    body = call_body(header, memoryview(bytearray(header.body_bytes)))
    assert body.rows.shape == (3, HIDDEN)
    with pytest.raises(ValueError, match="buffer"):
        call_body(header, memoryview(bytearray(header.body_bytes - 1)))


MOST_PAGES = MAX_BODY_BYTES // PAGE_BYTES + 1
"""Of one body: with its header it may end on one page more."""


@pytest.mark.parametrize(
    ("slots", "request_pages", "answer_pages", "taken"),
    [
        (1, 1, 1, True), (MAX_SLOTS, 1, 1, True),
        (1, MOST_PAGES, 1, True), (1, 1, MOST_PAGES, True),
        (0, 1, 1, False), (MAX_SLOTS + 1, 1, 1, False), (1, 0, 1, False), (1, 1, 0, False),
        (1, MOST_PAGES + 1, 1, False), (1, 1, MOST_PAGES + 1, False),
    ],
)  # fmt: skip
def test_a_segment_may_have_as_many_slots_and_pages_as_a_body_needs(
    slots: int, request_pages: int, answer_pages: int, taken: bool
) -> None:
    """Memory that nobody touches takes no room, so the largest ones can be tried."""
    shape = SegmentShape(slots, request_pages, answer_pages)
    fd = os.memfd_create("a test's", os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, shape.total_bytes)
        words = np.array([LAYOUT_VERSION, slots, request_pages, answer_pages], np.uint32)
        os.pwrite(fd, words.tobytes(), 0)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
        if taken:
            assert open_segment(fd).shape == shape
        else:
            with pytest.raises(FrameError, match="declares"):
                open_segment(fd)
    finally:
        os.close(fd)
