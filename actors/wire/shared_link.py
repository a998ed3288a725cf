"""`ClientLink` through shared memory, for a server on the same node.

Requests and answers are written in place in a segment (see `segment.py`). The Unix socket carries
the segment's and the bell's descriptor once, then single bytes that wake this side where it sleeps.
Its end-of-file is the peer's death.
"""

import contextlib
import os
import select
import socket
import time

from actors.wire.address import Address, connect
from actors.wire.atomics import find, observe, publish, spin, yield_until
from actors.wire.bell import Bell
from actors.wire.frame import HEADER_BYTES, Fault, FrameError, FrameKind, Header, unpack_header
from actors.wire.handshake import HandshakeError, receive_welcome
from actors.wire.link import CONNECT_TIMEOUT_S, LinkClosed, LinkTimeout, RemoteError
from actors.wire.patience import Patience
from actors.wire.segment import (
    ANSWERED,
    CLIENT_ASLEEP,
    FIRST_STATE,
    FREE,
    POSTED,
    SERVER_ASLEEP,
    SLOTS,
    STATE_STRIDE,
    SegmentShape,
    create_segment,
    shape_for,
)

FIRST_REQUEST_BYTES = 4 << 20
FIRST_ANSWER_BYTES = 8 << 20
LARGE_BODY_BYTES = 1 << 20
"""From here on a server is woken at once: it works while the bodies for others are written."""
BELLS_AT_ONCE = 64


class Channel:
    """One socket and its segment."""

    def __init__(self, address: Address, shape: SegmentShape, bell: Bell) -> None:
        self.address = address
        self._bell = bell
        self._socket = connect(address, CONNECT_TIMEOUT_S)
        try:
            self.segment, fd = create_segment(shape)
            try:
                hello = bytearray(HEADER_BYTES)
                Header(FrameKind.ATTACH, 0, 0).pack_into(hello)
                socket.send_fds(self._socket, [hello], [fd, bell.fd])
            finally:
                os.close(fd)
            self.incarnation = receive_welcome(self._socket)
            self._socket.setblocking(False)
        except BaseException:
            self._socket.close()
            raise
        self._words = self.segment.words
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLIN)
        self._patience = Patience()

    def fileno(self) -> int:
        return self._socket.fileno()

    def free_slot(self) -> int:
        """A slot that carries no call, -1 if there is none."""
        return int(find(self._words, FIRST_STATE, STATE_STRIDE, SLOTS, FREE))

    def is_idle(self) -> bool:
        """No slot carries a call."""
        states = self._words[FIRST_STATE::STATE_STRIDE][:SLOTS]
        return not states.any()

    def post(self, slot: int) -> None:
        publish(self._words, FIRST_STATE + slot * STATE_STRIDE, POSTED)
        if observe(self._words, SERVER_ASLEEP):
            self._bell.needed = True

    def wait(self, slot: int, deadline_s: float) -> None:
        """Return when the slot is answered. Raises LinkTimeout, LinkClosed."""
        state = FIRST_STATE + slot * STATE_STRIDE
        if observe(self._words, state) == ANSWERED:
            return
        start_s = time.perf_counter()
        answered = spin(
            lambda yields: yield_until(self._words, state, ANSWERED, yields), self._patience.spin_s
        )
        spun_s = time.perf_counter() - start_s
        if not answered:
            self._sleep_until_answered(state, deadline_s)
        self._patience.learn(time.perf_counter() - start_s, spun_s)

    def _sleep_until_answered(self, state: int, deadline_s: float) -> None:
        publish(self._words, CLIENT_ASLEEP, 1)
        try:
            while observe(self._words, state) != ANSWERED:
                left_s = deadline_s - time.monotonic()
                if left_s <= 0 or not self._poll.poll(max(1, left_s * 1000)):
                    raise LinkTimeout(f"{self.address} did not answer in time")
                self.drain()
        finally:
            publish(self._words, CLIENT_ASLEEP, 0)

    def drain(self) -> None:
        """Take in the bells that rang. Raises LinkClosed: the server is gone."""
        try:
            if not self._socket.recv(BELLS_AT_ONCE):
                raise LinkClosed(f"{self.address} closed the connection")
        except BlockingIOError:
            pass
        except OSError as error:
            raise LinkClosed(f"{self.address}: {error}") from error

    def release(self, slot: int) -> None:
        publish(self._words, FIRST_STATE + slot * STATE_STRIDE, FREE)

    def is_answered(self, slot: int) -> bool:
        return bool(observe(self._words, FIRST_STATE + slot * STATE_STRIDE) == ANSWERED)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.close()


class SharedLink:
    """See `ClientLink`. Bodies that outgrow the segment get a larger one, on a new connection."""

    def __init__(self, address: Address, bell: Bell) -> None:
        """Raises OSError where nobody listens, HandshakeError where something else does."""
        self.address = address
        self._bell = bell
        shape = shape_for(FIRST_REQUEST_BYTES, FIRST_ANSWER_BYTES)
        self._channel = Channel(address, shape, bell)
        self.incarnation = self._channel.incarnation
        self._slot = 0
        self._calls: dict[int, tuple[Channel, int]] = {}
        self._read: tuple[Channel, int] | None = None
        self._forgotten: list[tuple[Channel, int]] = []
        self._outgrown: list[Channel] = []

    @property
    def channel(self) -> Channel:
        """The segment that calls are posted in, until the link grows."""
        return self._channel

    def adopt(self, call_id: int, channel: Channel, slot: int) -> bool:
        """Take over a call that was posted by other means, if `channel` is one of this link's."""
        own = channel is self._channel or channel in self._outgrown
        if own:
            self._calls[call_id] = (channel, slot)
        return own

    def body(self, length: int, answer_length: int) -> memoryview:
        self._release()
        shape = self._channel.segment.shape
        if length > shape.request_bytes or answer_length > shape.answer_bytes:
            self._grow(
                shape_for(
                    max(2 * length, shape.request_bytes), max(2 * answer_length, shape.answer_bytes)
                )
            )
        self._slot = self._channel.free_slot()
        if self._slot < 0:
            raise LinkClosed(f"{self.address} has {SLOTS} calls unanswered already")
        return self._channel.segment.request(self._slot)[HEADER_BYTES : HEADER_BYTES + length]

    def _grow(self, shape: SegmentShape) -> None:
        self._outgrown.append(self._channel)
        try:
            self._channel = Channel(self.address, shape, self._bell)
        except (OSError, HandshakeError) as error:
            raise LinkClosed(f"{self.address}: {error}") from error

    def post(self, header: Header) -> None:
        header.pack_into(self._channel.segment.request(self._slot))
        self._calls[header.call_id] = (self._channel, self._slot)
        self._channel.post(self._slot)
        if header.body_bytes >= LARGE_BODY_BYTES:
            self._bell.ring()

    def wait(self, call_id: int, deadline_s: float) -> tuple[Header, memoryview]:
        self._release()
        channel, slot = self._calls[call_id]
        channel.wait(slot, deadline_s)
        del self._calls[call_id]
        self._read = (channel, slot)
        answer = channel.segment.answer(slot)
        try:
            header = unpack_header(bytes(answer[:HEADER_BYTES]))
        except FrameError as error:
            raise LinkClosed(f"{self.address}: {error}") from error
        if header.call_id != call_id or header.body_bytes > channel.segment.shape.answer_bytes:
            raise LinkClosed(f"{self.address} answered {header}")
        body = answer[HEADER_BYTES : HEADER_BYTES + header.body_bytes]
        if header.kind is FrameKind.ERROR:
            raise RemoteError(bytes(body).decode(errors="replace"), Fault(header.rows))
        return header, body

    def forget(self, call_id: int) -> None:
        if call_id in self._calls:
            self._forgotten.append(self._calls.pop(call_id))

    def _release(self) -> None:
        """Give back the slot that was read last, and what is no longer needed."""
        if self._read is not None:
            channel, slot = self._read
            channel.release(slot)
            self._read = None
        if self._forgotten:
            answered = [(c, slot) for c, slot in self._forgotten if c.is_answered(slot)]
            for channel, slot in answered:
                channel.release(slot)
            self._forgotten = [use for use in self._forgotten if use not in answered]
        for channel in [channel for channel in self._outgrown if channel.is_idle()]:
            channel.close()
            self._outgrown.remove(channel)

    def close(self) -> None:
        for channel in [self._channel, *self._outgrown]:
            channel.close()
