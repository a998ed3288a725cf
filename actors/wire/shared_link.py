"""`ClientLink` through shared memory, for a server on the same node.

Requests and answers are written in place in a segment (see `segment.py`). The Unix socket carries
the segment's and the bell's descriptor once, then the server's WELCOME, then single bytes that wake
this side where it sleeps. Its end-of-file is the peer's death.
"""

import contextlib
import os
import socket

from actors.wire.address import Address, connect
from actors.wire.bell import Bell
from actors.wire.frame import HEADER_BYTES, FrameKind, Header
from actors.wire.handshake import HandshakeError, read_welcome, receive_welcome
from actors.wire.link import CONNECT_TIMEOUT_S, FIRST_SHAPE, LinkClosed
from actors.wire.segment import Segment, SegmentShape, create_segment
from actors.wire.streams import PlainStream

BELLS_AT_ONCE = 64


def open_shared_link(address: Address, _: bytes, bell: Bell) -> "SharedLink":
    """See `transports.open_link`; no secret is needed where the socket's folder guards it."""
    sock = connect(address, CONNECT_TIMEOUT_S)
    try:
        segment = _attach(sock, FIRST_SHAPE, bell)
        incarnation = receive_welcome(PlainStream(sock))
    except BaseException:
        sock.close()
        raise
    return SharedLink(address, bell, sock, segment, incarnation)


def _attach(sock: socket.socket, shape: SegmentShape, bell: Bell) -> Segment:
    segment, fd = create_segment(shape)
    try:
        hello = bytearray(HEADER_BYTES)
        Header(FrameKind.ATTACH, 0, 0).pack_into(hello)
        socket.send_fds(sock, [hello], [fd, bell.fd])
    finally:
        os.close(fd)
    return segment


class SharedLink:
    """See `ClientLink`. It grows by a second connection, which is used before its WELCOME came: the
    server's answers are the same whenever it takes the connection in."""

    is_polled = False
    wants_write = False

    def __init__(
        self, address: Address, bell: Bell, sock: socket.socket, segment: Segment, incarnation: int,
        greeted: bool = True,
    ) -> None:  # fmt: skip
        self.address, self.incarnation, self.segment = address, incarnation, segment
        self.closed = False
        self._bell = bell
        self._socket = sock
        self._socket.setblocking(False)
        self._greeting = bytearray()
        self._greeted = greeted

    def fileno(self) -> int:
        return self._socket.fileno()

    def notify(self) -> None:
        self._bell.needed = True

    def progress(self) -> None:
        try:
            if not self._greeted:
                self._read_greeting()
            elif not self._socket.recv(BELLS_AT_ONCE):
                raise LinkClosed(f"{self.address} closed the connection")
        except BlockingIOError:
            pass
        except (OSError, HandshakeError) as error:
            raise LinkClosed(f"{self.address}: {error}") from error

    def _read_greeting(self) -> None:
        chunk = self._socket.recv(HEADER_BYTES - len(self._greeting))
        if not chunk:
            raise LinkClosed(f"{self.address} closed the connection")
        self._greeting += chunk
        if len(self._greeting) == HEADER_BYTES:
            self._greeted = True
            if read_welcome(self._greeting) != self.incarnation:
                raise LinkClosed(f"{self.address} is another process now")

    def grown(self, shape: SegmentShape) -> "SharedLink":
        sock = None
        try:
            sock = connect(self.address, 0.0)
            segment = _attach(sock, shape, self._bell)
        except OSError as error:
            if sock is not None:
                sock.close()
            raise LinkClosed(f"{self.address}: {error}") from error
        return SharedLink(self.address, self._bell, sock, segment, self.incarnation, greeted=False)

    @property
    def is_idle(self) -> bool:
        return not self.segment.busy()

    def close(self) -> None:
        self.closed = True
        with contextlib.suppress(OSError):
            self._socket.close()
