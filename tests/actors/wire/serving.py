"""Servers and raw clients for tests of the data links."""

import contextlib
import os
import socket
import time
from collections.abc import Iterator

from actors.shard.server import ShardServer
from actors.wire.address import Address, connect, parse_address
from actors.wire.bell import Bell
from actors.wire.body import CallBody, call_body
from actors.wire.exchange import Posted, Room
from actors.wire.frame import FrameKind, Header, body_bytes
from actors.wire.handshake import greet_server, receive_welcome
from actors.wire.link import LinkTimeout
from actors.wire.security import HANDSHAKE_ONLY, TcpSecurity
from actors.wire.segment import Segment, SegmentShape, create_segment
from actors.wire.streams import PlainStream
from actors.wire.transports import open_link
from actors.wire.waiting import Waiting
from tests.actors.fakes import HIDDEN, AffineKernel, spec
from tests.actors.wire.bare_server import SECRET

EVERY_EXPERT = {0: list(range(8)), 1: list(range(8))}
SHAPE = SegmentShape(2, 1, 1)


def shard_server(where: str, security: TcpSecurity = HANDSHAKE_ONLY) -> ShardServer:
    return ShardServer(
        spec(), AffineKernel(EVERY_EXPERT), [parse_address(where)], SECRET, security=security
    )


class Client:
    """One link and what is needed to use it from a test."""

    def __init__(self, address: Address, secret: bytes = SECRET) -> None:
        self.bell = Bell()
        self.link = open_link(address, secret, self.bell)
        self._waiting = Waiting()
        self._calls: dict[int, Posted] = {}

    def post(self, call_id: int, *, rows: int = 4, layer: int = 0, expert: int = 2) -> None:
        """A CALL of `rows` rows of ones through one expert each."""
        length = body_bytes(FrameKind.CALL, rows, HIDDEN, rows)
        header = Header(
            FrameKind.CALL, call_id, length, layer=layer, rows=rows, hidden=HIDDEN, assignments=rows
        )
        with self.sending(header) as body:
            body.rows[:] = 0x3F80  # 1.0
            body.row_index[:] = range(rows)
            body.experts[:] = expert
            body.weights[:] = 1.0

    @contextlib.contextmanager
    def sending(self, header: Header) -> Iterator[CallBody]:
        """A CALL whose body is written in the `with` block."""
        room = Room(self.link, header)
        self.link = room.link
        yield call_body(header, room.body)
        self._calls[header.call_id] = room.post()
        self.bell.ring()

    def wait(self, call_id: int, timeout_s: float = 5.0) -> tuple[Header, memoryview]:
        """The answer; its slot is free again. Raises LinkTimeout, LinkClosed, RemoteError."""
        posted = self._calls.pop(call_id)
        self._waiting.watch({id(link): link for link in (self.link, posted.link)}.values())
        if not self._waiting.answered(posted.parts, time.monotonic() + timeout_s):
            for _, error in self._waiting.lost:
                raise error
            raise LinkTimeout(f"no answer within {timeout_s:g} s")
        try:
            header, body = posted.read()
            return header, memoryview(bytes(body))
        finally:
            posted.free()

    def close(self) -> None:
        self.link.close()
        self.bell.close()


def raw_client(address: Address) -> socket.socket:
    """A socket that got as far as frames are expected: greeted over TCP, only connected else.

    The servers of the tests protect nothing but the handshake, so the socket is all there is.
    """
    sock = connect(address, 5.0)
    if not address.is_unix:
        greet_server(sock, SECRET)
        receive_welcome(PlainStream(sock))
    return sock


class RawSegment:
    """A client that attached by hand, to write what no client would."""

    def __init__(
        self, address: Address, *, shape: SegmentShape = SHAPE, sock: socket.socket | None = None
    ) -> None:
        """sock: connected already, if given."""
        self.bell = Bell()
        self.segment: Segment
        self.segment, fd = create_segment(shape)
        self.sock = sock or connect(address, 5.0)
        hello = bytearray(64)
        Header(FrameKind.ATTACH, 0, 0).pack_into(hello)
        socket.send_fds(self.sock, [hello], [fd, self.bell.fd])
        os.close(fd)

    def ring(self) -> None:
        self.bell.needed = True
        self.bell.ring()


def is_closed_by_peer(sock: socket.socket, timeout_s: float = 5.0) -> bool:
    """Whether the server ends the connection, reading what it may still say before."""
    sock.settimeout(timeout_s)
    try:
        while sock.recv(4096):
            pass
    except TimeoutError:
        return False
    except ConnectionError:
        pass
    return True
