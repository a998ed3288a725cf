"""Client side of one data link: the Protocol, and its implementation over stream sockets.

A caller asks for room for a body, writes the arrays straight into it, posts the frame, and later
waits for the answer. A link carries one call at a time; a dispatcher has one link per shard.
The kernel's end-of-file is how a dead peer is noticed; the deadline covers one that hangs.
"""

import contextlib
import select
import socket
import time
from typing import Protocol

from actors.wire.address import Address, connect
from actors.wire.frame import (
    HEADER_BYTES,
    FrameError,
    FrameKind,
    Header,
    unpack_header,
)
from actors.wire.handshake import greet_server

SOCKET_BUFFER_BYTES = 4 << 20
CONNECT_TIMEOUT_S = 5.0
INITIAL_BUFFER_BYTES = 1 << 16


class LinkClosed(ConnectionError):
    """The peer is gone: end of file, reset, or a frame that cannot be read."""


class LinkTimeout(LinkClosed):
    """The peer did not answer before the deadline; the link cannot be used again."""


class RemoteError(RuntimeError):
    """The peer answered with an ERROR frame: it is alive and says why it cannot serve the call."""


class ClientLink(Protocol):
    """One connection to a server of frames."""

    def body(self, length: int) -> memoryview:
        """Writable room for the next frame's body; valid until `post`."""
        ...

    def post(self, header: Header) -> None:
        """Send the frame whose body was just written. Raises LinkClosed."""
        ...

    def wait(self, call_id: int, deadline_s: float) -> tuple[Header, memoryview]:
        """The answer to `call_id`; its body is valid until the next `wait`.

        deadline_s: `time.monotonic()` value.

        Raises:
            LinkTimeout, LinkClosed, RemoteError.
        """
        ...

    def close(self) -> None: ...


class StreamLink:
    """`ClientLink` over a Unix or TCP stream socket."""

    def __init__(self, address: Address, secret: bytes) -> None:
        """Connect and, over TCP, prove knowledge of the mesh's secret.

        Raises:
            OSError: nobody listens. HandshakeError: wrong peer or wrong secret.
        """
        self.address = address
        self._socket = connect(address, CONNECT_TIMEOUT_S)
        try:
            if not address.is_unix:
                greet_server(self._socket, secret)
            for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
                self._socket.setsockopt(socket.SOL_SOCKET, option, SOCKET_BUFFER_BYTES)
            self._socket.setblocking(False)
        except BaseException:
            self._socket.close()
            raise
        self._out = bytearray(HEADER_BYTES + INITIAL_BUFFER_BYTES)
        self._in = bytearray(INITIAL_BUFFER_BYTES)
        self._head = bytearray(HEADER_BYTES)
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLIN)

    def body(self, length: int) -> memoryview:
        if HEADER_BYTES + length > len(self._out):
            self._out = bytearray(HEADER_BYTES + 2 * length)
        return memoryview(self._out)[HEADER_BYTES : HEADER_BYTES + length]

    def post(self, header: Header) -> None:
        header.pack_into(self._out)
        rest = memoryview(self._out)[: HEADER_BYTES + header.body_bytes]
        while rest:
            try:
                rest = rest[self._socket.send(rest) :]
            except BlockingIOError:
                self._wait_writable()
            except OSError as error:
                raise LinkClosed(f"{self.address}: {error}") from error

    def _wait_writable(self) -> None:
        # A server never stops reading (its answers are queued, not waited for), so the room comes.
        if not select.select([], [self._socket], [], CONNECT_TIMEOUT_S)[1]:
            raise LinkTimeout(f"{self.address} does not take data")

    def wait(self, call_id: int, deadline_s: float) -> tuple[Header, memoryview]:
        while True:
            self._receive(memoryview(self._head), deadline_s)
            try:
                header = unpack_header(self._head)
            except FrameError as error:
                raise LinkClosed(f"{self.address}: {error}") from error
            if header.body_bytes > len(self._in):
                self._in = bytearray(2 * header.body_bytes)
            body = memoryview(self._in)[: header.body_bytes]
            self._receive(body, deadline_s)
            if header.call_id != call_id:
                continue  # the late answer to a call that was given up
            if header.kind is FrameKind.ERROR:
                raise RemoteError(bytes(body).decode(errors="replace"))
            return header, body

    def _receive(self, target: memoryview, deadline_s: float) -> None:
        while target:
            try:
                count = self._socket.recv_into(target)
            except BlockingIOError:
                left_s = deadline_s - time.monotonic()
                if left_s <= 0 or not self._poll.poll(max(1, left_s * 1000)):
                    raise LinkTimeout(f"{self.address} did not answer in time") from None
                continue
            except OSError as error:
                raise LinkClosed(f"{self.address}: {error}") from error
            if count == 0:
                raise LinkClosed(f"{self.address} closed the connection")
            target = target[count:]

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.close()
