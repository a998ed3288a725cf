"""Servers and raw clients for tests of the data links."""

import os
import socket

from actors.shard_server import ShardServer
from actors.wire.address import Address, connect, parse_address
from actors.wire.bell import Bell
from actors.wire.body import call_body
from actors.wire.frame import FrameKind, Header, body_bytes
from actors.wire.handshake import greet_server, receive_welcome
from actors.wire.link import ClientLink
from actors.wire.segment import Segment, SegmentShape, create_segment
from tests.actors.fakes import HIDDEN, AffineKernel, spec
from tests.actors.wire.bare_server import SECRET

EVERY_EXPERT = {0: list(range(8)), 1: list(range(8))}
SHAPE = SegmentShape(2, 1, 1)


def shard_server(where: str) -> ShardServer:
    return ShardServer(spec(), AffineKernel(EVERY_EXPERT), [parse_address(where)], SECRET)


def post_call(
    link: ClientLink, bell: Bell, call_id: int, rows: int = 4, layer: int = 0, expert: int = 2
) -> None:
    """A CALL of `rows` rows of ones through one expert each."""
    length = body_bytes(FrameKind.CALL, rows, HIDDEN, rows)
    header = Header(
        FrameKind.CALL, call_id, length, layer=layer, rows=rows, hidden=HIDDEN, assignments=rows
    )
    body = call_body(header, link.body(length, body_bytes(FrameKind.RESULT, rows, HIDDEN)))
    body.rows[:] = 0x3F80  # 1.0
    body.row_index[:] = range(rows)
    body.experts[:] = expert
    body.weights[:] = 1.0
    link.post(header)
    bell.ring()


def raw_client(address: Address) -> socket.socket:
    """A socket that got as far as frames are expected: greeted over TCP, only connected else."""
    sock = connect(address, 5.0)
    if not address.is_unix:
        greet_server(sock, SECRET)
        receive_welcome(sock)
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
