"""A server's ends of the data links: over TCP and through shared memory.

Both read without blocking and leave room for an answer where it goes out from, so a handler
writes it once.
"""

import contextlib
import os
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from actors.wire.frame import HEADER_BYTES, FrameError, Header, unpack_header
from actors.wire.segment import (
    ANSWERED,
    CLIENT_ASLEEP,
    FIRST_STATE,
    STATE_STRIDE,
    Segment,
)
from actors.wire.streams import ByteStream
from native.atomics import observe, publish

if TYPE_CHECKING:
    from actors.wire.device_area import DeviceArea

FIRST_BUFFER_BYTES = 1 << 16
BELL = b"!"


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """A complete frame, and where its answer goes. slot: of a shared segment."""

    header: Header
    body: memoryview
    connection: "Connection"
    slot: int = 0


class Connection(Protocol):
    """One client."""

    sock: socket.socket
    peer: str
    area: "DeviceArea | None"
    """Device memory that both sides share; None over TCP."""

    def read(self) -> list[Request]:
        """Complete frames; their bodies are valid until they are answered and `read` again.

        Raises:
            FrameError: no frame. EOFError: the client closed. OSError.
        """
        ...

    def room(self, request: Request, length: int) -> memoryview:
        """Where the body of the answer is written. Raises FrameError: the client left no room."""
        ...

    def answer(self, request: Request, header: Header) -> None:
        """Send the header and what `room` was filled with. Raises OSError."""
        ...

    @property
    def wants_write(self) -> bool:
        """Answers are queued that the socket did not take; call `flush` when it does."""
        ...

    @property
    def has_more(self) -> bool:
        """`read` would get further though the socket has nothing to read. Raises OSError."""
        ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


class StreamConnection:
    """A client over TCP. Answers that the socket does not take now are queued, never waited for."""

    area: "DeviceArea | None" = None

    def __init__(self, sock: socket.socket, stream: ByteStream, peer: str) -> None:
        """stream: the bytes of `sock`."""
        self.sock, self.peer = sock, peer
        self._stream = stream
        self._head = bytearray(HEADER_BYTES)
        self._body = bytearray(FIRST_BUFFER_BYTES)
        self._header: Header | None = None
        self._filled = 0
        self._unanswered = False
        self._out = bytearray(HEADER_BYTES + FIRST_BUFFER_BYTES)
        self._unsent: list[memoryview] = []

    def read(self) -> list[Request]:
        if self._unanswered:
            return []  # its body is still needed
        if self._header is None:
            if not self._fill(memoryview(self._head)):
                return []
            self._header, self._filled = unpack_header(self._head), 0
            if self._header.body_bytes > len(self._body):
                self._body = bytearray(2 * self._header.body_bytes)
        body = memoryview(self._body)[: self._header.body_bytes]
        if not self._fill(body):
            return []
        header, self._header, self._filled = self._header, None, 0
        self._unanswered = True
        return [Request(header, body, self)]

    def _fill(self, target: memoryview) -> bool:
        while self._filled < len(target):
            try:
                count = self._stream.recv_into(target[self._filled :])
            except BlockingIOError:
                return False
            if count == 0:
                raise EOFError
            self._filled += count
        return True

    def room(self, request: Request, length: int) -> memoryview:
        if self._unsent or HEADER_BYTES + length > len(self._out):
            # What is queued still lies in the old buffer.
            self._out = bytearray(HEADER_BYTES + length)
        return memoryview(self._out)[HEADER_BYTES : HEADER_BYTES + length]

    def answer(self, request: Request, header: Header) -> None:
        self._unanswered = False
        header.pack_into(self._out)
        self._unsent.append(memoryview(self._out)[: HEADER_BYTES + header.body_bytes])
        if len(self._unsent) == 1:
            self.flush()

    @property
    def wants_write(self) -> bool:
        return bool(self._unsent)

    @property
    def has_more(self) -> bool:
        return self._stream.pending

    def flush(self) -> None:
        while self._unsent:
            try:
                sent = self._stream.send(self._unsent[0])
            except BlockingIOError:
                return
            self._unsent[0] = self._unsent[0][sent:]
            if not self._unsent[0]:
                self._unsent.pop(0)

    def close(self) -> None:
        self.sock.close()


class SharedConnection:
    """A client on this node: calls lie in its segment, the socket tells of its end.

    bell: its eventfd, which is this connection's to close.
    """

    wants_write = False
    has_more = False

    def __init__(
        self,
        sock: socket.socket,
        peer: str,
        segment: Segment,
        bell: int,
        area: "DeviceArea | None" = None,
    ) -> None:
        self.sock, self.peer, self.bell, self.area = sock, peer, bell, area
        self.segment, self._words = segment, segment.words

    def read(self) -> list[Request]:
        """What the socket has to say: only that the client is gone."""
        with contextlib.suppress(BlockingIOError):
            if not self.sock.recv(1):
                raise EOFError
            raise FrameError("bytes where only the end of the connection was to come")
        return []

    def request(self, slot: int) -> Request:
        """What was posted in a slot that the server took. Raises FrameError."""
        room = self.segment.request(slot)
        # A copy: the client could still change what lies in the segment after it was checked.
        header = unpack_header(bytes(room[:HEADER_BYTES]))
        if header.body_bytes > self.segment.shape.request_bytes:
            raise FrameError(f"body of {header.body_bytes} bytes in a smaller slot")
        body = room[HEADER_BYTES : HEADER_BYTES + header.body_bytes]
        return Request(header, body, self, slot)

    def room(self, request: Request, length: int) -> memoryview:
        if length > self.segment.shape.answer_bytes:
            raise FrameError(f"an answer of {length} bytes does not fit the segment")
        return self.segment.answer(request.slot)[HEADER_BYTES : HEADER_BYTES + length]

    def answer(self, request: Request, header: Header) -> None:
        header.pack_into(self.segment.answer(request.slot))
        publish(self._words, FIRST_STATE + request.slot * STATE_STRIDE, ANSWERED)
        if observe(self._words, CLIENT_ASLEEP):
            with contextlib.suppress(BlockingIOError):  # bells are waiting there already
                self.sock.send(BELL, socket.MSG_NOSIGNAL)

    def flush(self) -> None:
        """Nothing is ever queued."""

    def close(self) -> None:
        self.area = None  # before the client reads the end of the socket, and uses its memory again
        self.sock.close()
        if self.bell >= 0:
            os.close(self.bell)
            self.bell = -1
