"""What clients learn of a server when it takes them in."""

import threading

import pytest

from actors.wire.address import Address, listen
from actors.wire.bell import Bell
from actors.wire.frame import HEADER_BYTES, FrameKind, Header
from actors.wire.handshake import HandshakeError, draw_incarnation
from actors.wire.transports import open_link
from tests.actors.fakes import running
from tests.actors.wire.bare_server import SECRET
from tests.actors.wire.serving import shard_server


def incarnation_seen(address) -> int:
    bell = Bell()
    link = open_link(address, SECRET, bell)
    link.close()
    bell.close()
    return link.incarnation


@pytest.mark.parametrize("transport", ["unix", "tcp"])
def test_a_link_knows_the_incarnation_of_its_server(transport: str, tmp_path) -> None:
    where = f"unix:{tmp_path}/s" if transport == "unix" else "tcp:127.0.0.1:0"
    seen = []
    for _ in range(2):
        server = shard_server(where)
        with running(server):
            assert incarnation_seen(server.addresses[0]) == server.incarnation
            assert incarnation_seen(server.addresses[0]) == server.incarnation
        seen.append(server.incarnation)
    assert seen[0] != seen[1], "a server that is started again is another one"


def test_incarnations_fit_the_header_and_are_never_zero() -> None:
    for _ in range(1000):
        assert 0 < draw_incarnation() < 2**64


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"GET / HTTP/1.1\r\n".ljust(HEADER_BYTES),
        Header(FrameKind.WELCOME, 0, 0),
        Header(FrameKind.ATTACH, 5, 0),
    ],
    ids=["closes", "speaks something else", "incarnation zero", "another frame"],
)
def test_a_server_that_does_not_say_welcome_is_refused(answer, tmp_path) -> None:
    if isinstance(answer, Header):
        frame = bytearray(HEADER_BYTES)
        answer.pack_into(frame)
        answer = bytes(frame)
    listener, address = listen(Address(f"{tmp_path}/s"))

    def serve() -> None:
        client, _ = listener.accept()
        client.recv(HEADER_BYTES)
        client.sendall(answer)
        client.close()

    thread = threading.Thread(target=serve)
    thread.start()
    with pytest.raises(HandshakeError):
        open_link(address, SECRET, Bell())
    thread.join()
    listener.close()
