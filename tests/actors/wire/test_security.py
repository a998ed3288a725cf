"""TCP links between nodes: who may speak, and what becomes of what others say."""

import logging
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.wire.address import Address, connect, listen, parse_address
from actors.wire.body import sums_of
from actors.wire.frame import HEADER_BYTES, MAGIC, VERSION, FrameKind, Header, body_bytes
from actors.wire.handshake import (
    ANSWER_BYTES,
    GREETING,
    NONCE_BYTES,
    OPENING_BYTES,
    Challenge,
    HandshakeError,
    greet_server,
    proof,
    receive_welcome,
)
from actors.wire.link import LinkClosed
from actors.wire.records import RECORD_BYTES, RecordError, RecordStream, Tags
from actors.wire.security import LEVELS, Protection, TcpSecurity, session_keys
from actors.wire.tls import ServerTls, make_certificate
from tests.actors.fakes import HIDDEN, running
from tests.actors.wire.bare_server import SECRET
from tests.actors.wire.between import between, exactly
from tests.actors.wire.serving import Client, is_closed_by_peer, shard_server

WAIT_S = 60.0
AUTHENTICATED = TcpSecurity(Protection.AUTHENTICATED)
ENCRYPTED = TcpSecurity(Protection.ENCRYPTED)
TCP = "tcp:127.0.0.1:0"


def assert_served(client: Client, call_id: int = 1, rows: int = 4) -> None:
    client.post(call_id, rows=rows)
    header, body = client.wait(call_id, WAIT_S)
    assert (sums_of(body, header.rows, HIDDEN) == 3.0).all()


# -- links work the same at every level


@pytest.mark.parametrize("protection", LEVELS)
def test_calls_of_all_sizes_and_several_at_once(protection: Protection) -> None:
    server = shard_server(TCP, TcpSecurity(protection))
    with running(server):
        client = Client(server.addresses[0])
        assert client.link.incarnation == server.incarnation
        for expert in range(4):
            client.post(expert, layer=expert % 2, expert=expert)
        for expert in (2, 0, 3, 1):
            header, body = client.wait(expert, WAIT_S)
            wanted = np.full((4, HIDDEN), expert + 1 + expert % 2, np.float32)
            assert np.array_equal(sums_of(body, header.rows, HIDDEN), wanted)
        for call_id, rows in enumerate((100_000, 3, 120_000), start=10):
            assert_served(client, call_id, rows)
        client.close()


@pytest.mark.parametrize("protection", LEVELS)
def test_frames_larger_than_the_sockets_buffers(protection: Protection) -> None:
    """Sent in parts while the server takes them in, and another one behind it."""
    server = shard_server(TCP, TcpSecurity(protection))
    rows, assignments = 100, 2_000_000
    length = body_bytes(FrameKind.CALL, rows, HIDDEN, assignments)
    header = Header(FrameKind.CALL, 1, length, rows=rows, hidden=HIDDEN, assignments=assignments)
    with running(server):
        client = Client(server.addresses[0])
        with client.sending(header) as body:
            body.rows[:] = 0x3F80
            body.row_index[:] = np.arange(assignments) % rows
            body.experts[:], body.weights[:] = 2, rows / assignments
        client.post(2)
        answer, sums = client.wait(1, 4 * WAIT_S)
        assert np.allclose(sums_of(sums, answer.rows, HIDDEN), 3.0, rtol=1e-3)
        assert (sums_of(client.wait(2)[1], 4, HIDDEN) == 3.0).all()
        client.close()


@pytest.mark.parametrize("protection", LEVELS)
def test_who_does_not_know_the_secret_is_refused(protection: Protection, caplog) -> None:
    server = shard_server(TCP, TcpSecurity(protection))
    with caplog.at_level(logging.WARNING), running(server):
        with pytest.raises(HandshakeError):
            Client(server.addresses[0], b"another")
        assert_served(Client(server.addresses[0]))
    assert "client does not know this mesh's secret" in caplog.text


@pytest.mark.parametrize("protection", LEVELS)
def test_a_server_that_does_not_know_the_secret_is_refused(protection: Protection) -> None:
    """It accepts any client, and cannot prove that it belongs to the mesh."""
    listener, address = listen(parse_address(TCP))

    def serve() -> None:
        client, _ = listener.accept()
        tls = ServerTls(ENCRYPTED) if protection is Protection.ENCRYPTED else None
        challenge = Challenge(b"another", protection, tls.digest if tls else b"")
        client.sendall(challenge.opening)
        if tls is not None:
            client = tls.context.wrap_socket(client, server_side=True)
        exactly(client, ANSWER_BYTES)
        client.sendall(bytes(32))
        with suppress(OSError):
            client.recv(1)

    thread = threading.Thread(target=serve)
    thread.start()
    with pytest.raises(HandshakeError, match="peer does not know this mesh's secret"):
        Client(address)
    thread.join(WAIT_S)
    listener.close()


def test_proofs_are_of_one_role() -> None:
    """Neither side's proof can be sent back to it, nor used in another handshake."""
    challenge = Challenge(SECRET)
    nonce = bytes(NONCE_BYTES)
    transcript = challenge.opening + nonce
    right = proof(SECRET, b"client", transcript)
    assert challenge.accept(nonce + right) == proof(SECRET, b"server", transcript) != right
    for wrong in (
        proof(SECRET, b"server", transcript),
        proof(SECRET, b"", transcript),
        proof(SECRET, b"client", Challenge(SECRET).opening + nonce),
        proof(b"another", b"client", transcript),
    ):
        with pytest.raises(HandshakeError, match="does not know this mesh's secret"):
            Challenge.accept(challenge, nonce + wrong)


def test_a_server_that_sends_the_clients_proof_back_is_refused() -> None:
    ours, theirs = socket.socketpair()

    def reflect() -> None:
        theirs.sendall(Challenge(b"").opening)
        theirs.sendall(exactly(theirs, ANSWER_BYTES)[NONCE_BYTES:])

    thread = threading.Thread(target=reflect)
    thread.start()
    with pytest.raises(HandshakeError, match="peer does not know this mesh's secret"):
        greet_server(ours, SECRET)
    thread.join(WAIT_S)


@pytest.mark.parametrize(
    "opening", [b"XMSH-HS1" + bytes(33), GREETING + bytes([len(LEVELS)]) + bytes(32)]
)
def test_other_versions_and_levels_are_told(opening: bytes) -> None:
    ours, theirs = socket.socketpair()
    theirs.sendall(opening)
    with pytest.raises(HandshakeError, match="of this version"):
        greet_server(ours, SECRET)
    theirs.close()


# -- somebody in between


@pytest.mark.parametrize("security", [AUTHENTICATED, ENCRYPTED], ids=lambda s: s.protection)
def test_nobody_in_between_can_ask_for_less(security: TcpSecurity, caplog) -> None:
    server = shard_server(TCP, security)

    def lower(opening: bytes) -> bytes:
        changed = bytearray(opening)
        changed[len(GREETING)] = LEVELS.index(Protection.NONE)
        return bytes(changed)

    with caplog.at_level(logging.WARNING), running(server):
        refused = pytest.raises((HandshakeError, OSError))
        with between(server.addresses[0], opening=lower) as relay, refused:
            Client(relay.address)
    assert "refused" in caplog.text


def flipped(records: list[bytes], number: int, at: int, bit: int = 1) -> list[bytes]:
    if len(records) <= number:
        return records
    changed = bytearray(records[number])
    changed[at] ^= bit
    return [*records[:number], bytes(changed), *records[number + 1 :]]


CHANGES = {
    "a bit of the payload": lambda records: flipped(records, 1, at=100),
    "a bit of the tag": lambda records: flipped(records, 1, at=-1),
    "a shorter length": lambda records: flipped(records, 1, at=0, bit=128),
    "a record twice": lambda records: (
        [*records[:2], records[1], *records[2:]] if len(records) > 1 else records
    ),
    "a record left out": lambda records: [*records[:1], *records[2:]],
    "an earlier record instead": lambda records: [records[0]] * len(records),
}


def call_that_is_changed(**changes) -> tuple[bool, str]:
    """Three calls through somebody who changes records; whether all were served, or why not."""
    server = shard_server(TCP, AUTHENTICATED)
    with running(server), between(server.addresses[0], **changes) as relay:
        client = Client(relay.address)
        try:
            for call_id in (1, 2, 3):
                client.post(call_id, rows=50)
            for call_id in (1, 2, 3):
                header, body = client.wait(call_id, WAIT_S)
                assert (sums_of(body, header.rows, HIDDEN) == 3.0).all()
        except LinkClosed as error:
            return False, str(error)
        finally:
            client.close()
        return True, ""


@pytest.mark.parametrize("change", CHANGES.values(), ids=list(CHANGES))
def test_what_a_client_did_not_say_is_not_computed(change, caplog) -> None:
    with caplog.at_level(logging.WARNING):
        served, _ = call_that_is_changed(to_server=change)
    assert not served
    assert "closing tcp:" in caplog.text
    assert "record" in caplog.text


@pytest.mark.parametrize("change", CHANGES.values(), ids=list(CHANGES))
def test_what_a_server_did_not_say_is_not_believed(change) -> None:
    served, why = call_that_is_changed(to_client=change)
    assert not served
    assert "record" in why


def test_a_session_that_is_let_alone_is_served() -> None:
    """The one in between of these tests is not what ends the sessions."""
    assert call_that_is_changed(to_server=list, to_client=list)[0]


def test_what_was_recorded_of_a_session_is_not_taken_in_another(caplog) -> None:
    server = shard_server(TCP, AUTHENTICATED)
    with caplog.at_level(logging.WARNING), running(server):
        with between(server.addresses[0], to_server=list) as relay:
            client = Client(relay.address)
            assert_served(client)
            client.close()
            recorded = relay.heard_from_client
        sock = connect(server.addresses[0], WAIT_S)
        receive_welcome(greet_server(sock, SECRET))
        sock.sendall(b"".join(recorded))
        assert is_closed_by_peer(sock)
    assert "a record that the peer did not send" in caplog.text


def test_what_is_said_can_be_read_where_it_is_authenticated_and_not_where_it_is_encrypted() -> None:
    for security, readable in ((AUTHENTICATED, True), (ENCRYPTED, False)):
        server = shard_server(TCP, security)
        with running(server), between(server.addresses[0]) as relay:
            client = Client(relay.address)
            assert_served(client)
            client.close()
            assert (MAGIC + bytes([VERSION]) in b"".join(relay.heard_from_client)) is readable


def test_a_tls_certificate_of_somebody_else_is_refused(caplog) -> None:
    """Somebody in between who ends TLS on both sides, and passes on what is said inside."""
    server = shard_server(TCP, ENCRYPTED)
    listener, address = listen(parse_address(TCP))

    def relay() -> None:
        client, _ = listener.accept()
        upstream = connect(server.addresses[0], WAIT_S)
        client.sendall(exactly(upstream, OPENING_BYTES))
        client = ServerTls(ENCRYPTED).context.wrap_socket(client, server_side=True)
        inner = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        inner.check_hostname, inner.verify_mode = False, ssl.CERT_NONE
        upstream = inner.wrap_socket(upstream)
        upstream.sendall(exactly(client, ANSWER_BYTES))
        with suppress(OSError, EOFError):
            client.sendall(exactly(upstream, 32))
        client.close()

    with caplog.at_level(logging.WARNING), running(server):
        thread = threading.Thread(target=relay)
        thread.start()
        with pytest.raises((HandshakeError, OSError)):
            Client(address)
        thread.join(WAIT_S)
    listener.close()
    assert "client does not know this mesh's secret" in caplog.text


def test_given_certificates_are_shown(tmp_path) -> None:
    pem = make_certificate()
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    end = pem.index(b"-----BEGIN PRIVATE")
    certificate.write_bytes(pem[:end])
    key.write_bytes(pem[end:])
    server = shard_server(TCP, TcpSecurity(Protection.ENCRYPTED, certificate, key))
    with running(server):
        sock = connect(server.addresses[0], WAIT_S)
        exactly(sock, OPENING_BYTES)
        context = ssl.create_default_context(cafile=str(certificate))
        context.check_hostname = False
        with context.wrap_socket(sock) as shown:  # it would raise for any other
            assert shown.version() == "TLSv1.3"
        assert_served(Client(server.addresses[0]))


# -- records


def streams(key: bytes = bytes(32)) -> tuple[RecordStream, RecordStream, socket.socket]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    return RecordStream(ours, key, key), RecordStream(theirs, key, key), theirs


@pytest.mark.parametrize("size", [1, 100, RECORD_BYTES, RECORD_BYTES + 1, 5 * RECORD_BYTES - 7])
@pytest.mark.parametrize("step", [7000, 1 << 20])
def test_bytes_come_as_they_went(size: int, step: int) -> None:
    sender, receiver, _ = streams()
    data = np.random.default_rng(size).bytes(size)
    rest, got = memoryview(data), b""
    target = memoryview(bytearray(step))
    while len(got) < size:
        with suppress(BlockingIOError):
            while rest:
                rest = rest[sender.send(rest) :]
        with suppress(BlockingIOError):
            while True:
                got += target[: receiver.recv_into(target)]
    assert got == data
    assert not receiver.pending


def test_a_stream_tells_of_records_that_its_socket_no_longer_has() -> None:
    sender, receiver, sock = streams()
    for word in (b"one", b"two"):
        sender.send(memoryview(word))
    target = memoryview(bytearray(3))
    assert receiver.recv_into(target) == 3
    with pytest.raises(BlockingIOError):
        sock.recv(1)
    assert receiver.pending
    assert receiver.recv_into(target) == 3
    assert bytes(target) == b"two"
    assert not receiver.pending


@pytest.mark.parametrize("length", [0, RECORD_BYTES + 1, (1 << 32) - 1])
def test_lengths_beyond_a_record_are_refused(length: int) -> None:
    ours, theirs = socket.socketpair()
    theirs.sendall(length.to_bytes(4, "little") + bytes(100))
    with pytest.raises(RecordError, match=f"a record of {length} bytes"):
        RecordStream(ours, bytes(32), bytes(32)).recv_into(memoryview(bytearray(8)))


def test_keys_differ_by_direction_secret_and_handshake() -> None:
    keys = [
        session_keys(secret, transcript)
        for secret in (b"one", b"two")
        for transcript in (b"a" * 64, b"b" * 64)
    ]
    assert len({key for pair in keys for key in (pair.client, pair.server)}) == 8


def test_tags_depend_on_number_and_key() -> None:
    payload = b"the same bytes"
    tags = Tags(bytes(32))
    made = [tags.make(payload), tags.make(payload), Tags(bytes([1]) * 32).make(payload)]
    assert len(set(made)) == 3
    reader = Tags(bytes(32))
    reader.check(payload, made[0])
    reader.check(payload, made[1])
    with pytest.raises(RecordError):
        reader.check(payload, made[1])


def test_a_wrong_header_inside_good_records_ends_the_connection(caplog) -> None:
    server = shard_server(TCP, AUTHENTICATED)
    with caplog.at_level(logging.WARNING), running(server):
        stream = greet_server(connect(server.addresses[0], WAIT_S), SECRET)
        receive_welcome(stream)
        stream.send(memoryview(bytes(HEADER_BYTES)))
        assert stream.recv_into(memoryview(bytearray(1))) == 0
    assert "not an ExpertMesh frame" in caplog.text


@pytest.fixture(scope="module")
def protected() -> Iterator[Address]:
    """One server for all examples: it has to survive them together."""
    server = shard_server(TCP, AUTHENTICATED)
    with running(server):
        yield server.addresses[0]


@settings(deadline=None, max_examples=40)
@given(data=st.binary(min_size=1, max_size=300))
def test_random_bytes_instead_of_records(protected: Address, data: bytes) -> None:
    sock = connect(protected, WAIT_S)
    receive_welcome(greet_server(sock, SECRET))
    sock.sendall(data)
    sock.shutdown(socket.SHUT_WR)
    assert is_closed_by_peer(sock)
    sock.close()
    client = Client(protected)
    assert_served(client)
    client.close()
