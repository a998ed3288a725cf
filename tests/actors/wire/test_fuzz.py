"""Whatever arrives instead of frames: the connection ends with a reason, the server serves on."""

import logging
import os
import socket
import struct
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from actors.wire.frame import (
    HEADER_BYTES,
    MAGIC,
    MAX_BODY_BYTES,
    VERSION,
    FrameError,
    FrameKind,
    Header,
    RowCoding,
    body_bytes,
    unpack_header,
)
from actors.wire.segment import (
    FIRST_STATE,
    POSTED,
    STATE_STRIDE,
    SegmentShape,
    open_segment,
)
from tests.actors.fakes import HIDDEN, running
from tests.actors.wire.serving import (
    SHAPE,
    Client,
    RawSegment,
    is_closed_by_peer,
    raw_client,
    shard_server,
)

FUZZ = settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
LAYOUT = struct.Struct("<4sHHQQIIIIIIQq")
CALL_LENGTH = body_bytes(FrameKind.CALL, 2, HIDDEN, 2)


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator:
    """One server, on both transports, for all examples: it has to survive them together."""
    folder = tmp_path_factory.mktemp("fuzz")
    unix = shard_server(f"unix:{folder}/s")
    tcp = shard_server("tcp:127.0.0.1:0")
    with running(unix), running(tcp):
        yield {"unix": unix.addresses[0], "tcp": tcp.addresses[0]}


def assert_alive(address) -> None:
    client = Client(address)
    client.post(1)
    header, _ = client.wait(1)
    assert header.rows == 4
    client.close()


def good_call(**changes: int) -> bytes:
    """A CALL's header with some fields replaced."""
    names = (
        "magic version kind epoch call_id layer rows hidden assignments compute_us coding length "
        "sample"
    )
    fields = dict(
        zip(
            names.split(),
            (MAGIC, VERSION, int(FrameKind.CALL), 1, 1, 0, 2, HIDDEN, 2, 0, 0, CALL_LENGTH, 0),
            strict=True,
        )
    )
    return LAYOUT.pack(*(fields | changes).values())


TEXTS = (FrameKind.ERROR, FrameKind.ATTACH)
"""Their bodies are as long as their texts."""

BROKEN = {
    "wrong magic": good_call(magic=b"HTTP"),
    "wrong version": good_call(version=VERSION + 1),
    "unknown kind": good_call(kind=99),
    "rows beyond the limit": good_call(rows=1 << 30),
    "assignments beyond the limit": good_call(assignments=1 << 31),
    "unknown row coding": good_call(coding=3),
    "row coding where there are no rows": good_call(kind=int(FrameKind.ATTACH), coding=1, length=0),
    "length of the other row coding": good_call(coding=1),
    "rows in a body whose rows are elsewhere": good_call(coding=2),
    "offer too long": good_call(kind=int(FrameKind.ATTACH), length=1 << 20),
    "odd hidden": good_call(hidden=HIDDEN + 1),
    "length that lies": good_call(length=CALL_LENGTH + 4),
    "length of a terabyte": good_call(length=1 << 40),
    "counts of more than a body": good_call(
        rows=1 << 17, hidden=1 << 16, length=(1 << 34) + 2 * 12
    ),
    "error text too long": good_call(kind=int(FrameKind.ERROR), length=1 << 20),
    "unknown fault": good_call(kind=int(FrameKind.ERROR), rows=3, length=4),
}


@given(data=st.binary(min_size=HEADER_BYTES, max_size=HEADER_BYTES))
@settings(deadline=None, max_examples=300)
def test_reader_takes_no_nonsense(data: bytes) -> None:
    with pytest.raises(FrameError):
        unpack_header(data)


@given(
    kind=st.integers(0, 9),
    rows=st.integers(0, 2**32 - 1),
    hidden=st.integers(0, 2**32 - 1),
    assignments=st.integers(0, 2**32 - 1),
    length=st.integers(0, 2**64 - 1),
    coding=st.integers(0, 3),
)
@settings(deadline=None, max_examples=300)
def test_reader_believes_no_length(kind, rows, hidden, assignments, length, coding) -> None:
    head = good_call(
        kind=kind, rows=rows, hidden=hidden, assignments=assignments, length=length, coding=coding
    )
    try:
        header = unpack_header(head)
    except FrameError:
        return
    assert header.body_bytes <= MAX_BODY_BYTES
    if header.kind not in TEXTS:
        assert header.body_bytes == body_bytes(
            header.kind, rows, hidden, assignments, RowCoding(coding)
        )


@given(
    kind=st.sampled_from([k for k in FrameKind if k not in TEXTS]),
    rows=st.integers(0, 1000),
    hidden=st.integers(0, 100).map(lambda half: 2 * half),
    assignments=st.integers(0, 1000),
    layer=st.integers(0, 2**32 - 1),
    call_id=st.integers(0, 2**64 - 1),
    coding=st.sampled_from(RowCoding),
)
@settings(deadline=None)
def test_headers_come_back_as_they_went(
    kind, rows, hidden, assignments, layer, call_id, coding
) -> None:
    if kind not in (FrameKind.CALL, FrameKind.RESULT):
        coding = RowCoding.BF16
    length = body_bytes(kind, rows, hidden, assignments, coding)
    header = Header(kind, call_id, length, 5, layer, rows, hidden, assignments, 17, coding)
    buffer = bytearray(HEADER_BYTES)
    header.pack_into(buffer)
    assert unpack_header(buffer) == header


@pytest.mark.parametrize("head", BROKEN.values(), ids=list(BROKEN))
def test_broken_header_ends_the_connection(server, head: bytes, caplog) -> None:
    with caplog.at_level(logging.WARNING):
        sock = raw_client(server["tcp"])
        sock.sendall(head)
        assert is_closed_by_peer(sock)
        sock.close()
        client = RawSegment(server["unix"])
        client.segment.request(0)[:HEADER_BYTES] = head
        client.segment.words[FIRST_STATE] = POSTED
        client.ring()
        assert is_closed_by_peer(client.sock)
        client.sock.close()
    assert caplog.text.count("closing ") == 2, "a reason is logged for each"
    for address in server.values():
        assert_alive(address)


@FUZZ
@given(data=st.binary(min_size=1, max_size=300), transport=st.sampled_from(["unix", "tcp"]))
def test_random_bytes(server, transport: str, data: bytes) -> None:
    sock = raw_client(server[transport])
    sock.sendall(data)
    sock.shutdown(socket.SHUT_WR)
    assert is_closed_by_peer(sock)
    sock.close()
    assert_alive(server[transport])


@FUZZ
@given(cut=st.integers(0, HEADER_BYTES + CALL_LENGTH - 1))
def test_truncated_frame(server, cut: int) -> None:
    sock = raw_client(server["tcp"])
    sock.sendall((good_call() + bytes(CALL_LENGTH))[:cut])
    sock.close()
    assert_alive(server["tcp"])


@FUZZ
@given(body=st.binary(min_size=CALL_LENGTH, max_size=CALL_LENGTH))
def test_random_bodies_are_answered(server, body: bytes) -> None:
    """A well-formed frame with any content gets an answer: sums, or an ERROR that says why."""
    sock = raw_client(server["tcp"])
    sock.settimeout(5)
    sock.sendall(good_call() + body)
    head = sock.recv(HEADER_BYTES, socket.MSG_WAITALL)
    assert unpack_header(head).kind in (FrameKind.RESULT, FrameKind.ERROR)
    sock.close()


@FUZZ
@given(
    words=st.lists(st.integers(0, 2**32 - 1), min_size=4, max_size=4),
    keep=st.integers(0, 4),
)
def test_random_control_page(server, words: list[int], keep: int) -> None:
    """A segment may declare anything; what does not fit its true size is refused."""
    client = RawSegment(server["unix"])
    client.segment.words[keep:4] = words[keep:]
    client.ring()
    client.sock.shutdown(socket.SHUT_WR)
    assert is_closed_by_peer(client.sock)
    client.sock.close()
    client.bell.close()
    assert_alive(server["unix"])


@FUZZ
@given(
    head=st.binary(min_size=HEADER_BYTES, max_size=HEADER_BYTES)
    | st.sampled_from([*BROKEN.values(), good_call(rows=60, length=body_bytes(
        FrameKind.CALL, 60, HIDDEN, 2)), good_call(rows=250, length=body_bytes(
        FrameKind.CALL, 250, HIDDEN, 2))]),
    states=st.lists(st.integers(0, 5), min_size=2, max_size=2),
)  # fmt: skip
def test_random_slots(server, head: bytes, states: list[int]) -> None:
    """Headers that are none, bodies longer than the slot, answers that do not fit it."""
    client = RawSegment(server["unix"])
    for slot, state in enumerate(states):
        client.segment.request(slot)[:HEADER_BYTES] = head
        client.segment.words[FIRST_STATE + slot * STATE_STRIDE] = state
    client.ring()
    client.sock.shutdown(socket.SHUT_WR)
    assert is_closed_by_peer(client.sock)
    client.sock.close()
    client.bell.close()
    assert_alive(server["unix"])


def test_segment_that_could_shrink_is_refused() -> None:
    fd = os.memfd_create("not sealed", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, SHAPE.total_bytes)
    with pytest.raises(FrameError, match="not a sealed memfd"):
        open_segment(fd)
    os.close(fd)


def test_descriptor_that_is_no_memory_is_refused() -> None:
    read, write = os.pipe()
    with pytest.raises(FrameError, match="not a sealed memfd"):
        open_segment(read)
    os.close(read)
    os.close(write)


def test_slots_do_not_overlap() -> None:
    from actors.wire.segment import create_segment

    segment, fd = create_segment(SegmentShape(3, 2, 1))
    os.close(fd)
    rooms = [room for slot in range(3) for room in (segment.request(slot), segment.answer(slot))]
    for number, room in enumerate(rooms):
        room[:] = bytes([number]) * len(room)
    for number, room in enumerate(rooms):
        assert np.unique(np.frombuffer(room, np.uint8)).tolist() == [number]
