"""`ClientLink` over TCP, for a server on another node.

The slots are memory of this process: `notify` sends what is posted there, `progress` sends what the
socket did not take at once and receives answers straight into the slots of their calls.
"""

import contextlib
import socket
from collections import deque
from typing import TYPE_CHECKING

from actors.wire.address import Address, connect
from actors.wire.frame import HEADER_BYTES
from actors.wire.handshake import greet_server, receive_welcome
from actors.wire.layout import body_bytes_of, call_id_of
from actors.wire.link import CONNECT_TIMEOUT_S, FIRST_SHAPE, LinkClosed
from actors.wire.segment import ANSWERED, POSTED, TAKEN, Segment, SegmentShape, private_segment
from actors.wire.streams import ByteStream

if TYPE_CHECKING:
    from actors.wire.device_area import DeviceArea

SOCKET_BUFFER_BYTES = 4 << 20


def open_stream_link(address: Address, secret: bytes, _: object, __: object = None) -> "StreamLink":
    """See `transports.open_link`."""
    sock = connect(address, CONNECT_TIMEOUT_S)
    try:
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            sock.setsockopt(socket.SOL_SOCKET, option, SOCKET_BUFFER_BYTES)
        stream = greet_server(sock, secret)
    except BaseException:
        sock.close()
        raise
    try:
        return StreamLink(address, stream, receive_welcome(stream))
    except BaseException:
        stream.close()
        raise


class StreamLink:
    """See `ClientLink`. Answers come in any order."""

    is_polled = True
    area: "DeviceArea | None" = None

    def __init__(self, address: Address, stream: ByteStream, incarnation: int) -> None:
        self.address, self.incarnation = address, incarnation
        self.segment = private_segment(FIRST_SHAPE)
        self.closed = False
        self._stream = stream
        self._stream.setblocking(False)
        self._unsent: deque[memoryview] = deque()
        self._calls: dict[int, tuple[Segment, int]] = {}
        """Slots of the calls that were sent, by call id."""
        self._head = memoryview(bytearray(HEADER_BYTES))
        self._room = self._head
        """Where the answer that is coming goes: the slot's, or `_head` while it is not known."""
        self._filled = 0
        self._length = 0
        """Of this answer, 0 while its header has not come; then `_call_id` says whose it is."""
        self._call_id = 0

    def fileno(self) -> int:
        return self._stream.fileno()

    # -- sending

    @property
    def wants_write(self) -> bool:
        return bool(self._unsent)

    def notify(self) -> None:
        segment = self.segment
        while (slot := segment.find(POSTED)) >= 0:
            segment.set(slot, TAKEN)
            request = segment.request(slot)
            self._calls[call_id_of(request)] = (segment, slot)
            self._unsent.append(request[: HEADER_BYTES + body_bytes_of(request)])
        self._send()

    def _send(self) -> None:
        while self._unsent:
            rest = self._unsent[0]
            try:
                sent = self._stream.send(rest)
            except BlockingIOError:
                return
            except OSError as error:
                raise LinkClosed(f"{self.address}: {error}") from error
            if sent == len(rest):
                self._unsent.popleft()
            else:
                self._unsent[0] = rest[sent:]

    # -- receiving

    def progress(self) -> None:
        self._send()
        while self._receive():
            if not self._calls:
                return  # nothing more is to come

    def _receive(self) -> bool:
        """Read once; False when there is nothing to read."""
        room = self._next_room()
        try:
            count = self._stream.recv_into(room[self._filled :])
        except BlockingIOError:
            return False
        except OSError as error:
            raise LinkClosed(f"{self.address}: {error}") from error
        if count == 0:
            raise LinkClosed(f"{self.address} closed the connection")
        self._filled += count
        if not self._length and self._filled >= HEADER_BYTES:
            self._take_header()
        if self._length and self._filled == self._length:
            self._finish()
        return True

    def _next_room(self) -> memoryview:
        """Where the next bytes go, with those that are there already."""
        if self._length:
            return self._room[: self._length]
        if len(self._calls) == 1:
            # There is only one frame that can come, so all of it is read at once.
            segment, slot = next(iter(self._calls.values()))
            room = segment.answer(slot)
            if self._filled:
                room[: self._filled] = self._room[: self._filled]
            self._room = room
            return room
        return self._room[:HEADER_BYTES]

    def _take_header(self) -> None:
        """Learn whose answer is coming. What else the header says is for those who read it."""
        call_id = call_id_of(self._room)
        length = HEADER_BYTES + body_bytes_of(self._room)
        if call_id not in self._calls:
            raise LinkClosed(f"{self.address} answered call {call_id}, which was not asked")
        segment, slot = self._calls[call_id]
        room = segment.answer(slot)
        if length > len(room):
            raise LinkClosed(f"{self.address} answered with {length} bytes, {len(room)} fit")
        if self._filled > length:
            raise LinkClosed(f"{self.address} sent more than one answer")
        room[: self._filled] = self._room[: self._filled]
        self._room, self._length, self._call_id = room, length, call_id

    def _finish(self) -> None:
        segment, slot = self._calls.pop(self._call_id)
        segment.set(slot, ANSWERED)
        self._room, self._length, self._filled = self._head, 0, 0

    # -- the rest

    def grown(self, shape: SegmentShape) -> "StreamLink":
        try:
            self.segment = private_segment(shape)
        except OSError as error:
            raise LinkClosed(f"{self.address}: {error}") from error
        return self

    @property
    def is_idle(self) -> bool:
        return not self._calls

    def close(self) -> None:
        self.closed = True
        with contextlib.suppress(OSError):
            self._stream.close()
