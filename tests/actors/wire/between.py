"""Somebody between a client and a server on TCP, who reads and changes what they say."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from actors.wire.address import Address, connect, parse_address
from actors.wire.handshake import ANSWER_BYTES, OPENING_BYTES, PROOF_BYTES
from actors.wire.records import PREFIX, TAG_BYTES

Change = Callable[[list[bytes]], list[bytes]]


def unchanged(records: list[bytes]) -> list[bytes]:
    return records


class Between:
    """Relays one connection. opening: changes the server's first message.

    to_server, to_client: change the records of the session, given all of them so far; what they
    return beyond what was passed on already is passed on. With None the bytes go on as they are.
    """

    def __init__(
        self,
        server: Address,
        *,
        opening: Callable[[bytes], bytes] = lambda opening: opening,
        to_server: Change | None = None,
        to_client: Change | None = None,
    ) -> None:
        self.heard_from_client: list[bytes] = []
        self.heard_from_server: list[bytes] = []
        self._opening, self._to_server, self._to_client = opening, to_server, to_client
        self._server = connect(server, 5.0)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = parse_address(f"tcp:127.0.0.1:{self._listener.getsockname()[1]}")
        self._client: socket.socket | None = None
        self._threads: list[threading.Thread] = []

    def run(self) -> None:
        client, _ = self._listener.accept()
        self._client = client
        server = self._server
        client.sendall(self._opening(exactly(server, OPENING_BYTES)))
        for source, target, heard, change, handshake in (
            (client, server, self.heard_from_client, self._to_server, ANSWER_BYTES),
            (server, client, self.heard_from_server, self._to_client, PROOF_BYTES),
        ):
            thread = threading.Thread(
                target=relay, args=(source, target, heard, change, handshake), daemon=True
            )
            thread.start()
            self._threads.append(thread)

    def close(self) -> None:
        for sock in (self._listener, self._server, self._client):
            if sock is not None:
                sock.close()


def relay(
    source: socket.socket,
    target: socket.socket,
    heard: list[bytes],
    change: Change | None,
    handshake: int,
) -> None:
    try:
        if change is None:
            while chunk := source.recv(1 << 16):
                heard.append(chunk)
                target.sendall(chunk)
        else:
            target.sendall(exactly(source, handshake))
            passed = 0
            while True:
                prefix = exactly(source, PREFIX.size)
                heard.append(prefix + exactly(source, PREFIX.unpack(prefix)[0] + TAG_BYTES))
                records = change(heard)
                target.sendall(b"".join(records[passed:]))
                passed = len(records)
    except (OSError, EOFError):
        pass
    finally:
        shut_down(target)


def shut_down(sock: socket.socket) -> None:
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


def exactly(sock: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        chunk = sock.recv(count - len(data))
        if not chunk:
            raise EOFError
        data += chunk
    return data


@contextmanager
def between(server: Address, **changes: object) -> Iterator[Between]:
    """Somebody between for the length of a `with` block; clients connect to its address."""
    relaying = Between(server, **changes)  # type: ignore[arg-type]
    thread = threading.Thread(target=relaying.run, daemon=True)
    thread.start()
    try:
        yield relaying
    finally:
        relaying.close()
