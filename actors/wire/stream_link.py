"""`ClientLink` over TCP, for a server on another node."""

import contextlib
import os
import select
import socket
import time

from actors.wire.address import Address, connect
from actors.wire.frame import HEADER_BYTES, Fault, FrameError, FrameKind, Header, unpack_header
from actors.wire.handshake import greet_server, receive_welcome
from actors.wire.link import CONNECT_TIMEOUT_S, LinkClosed, LinkTimeout, RemoteError
from actors.wire.patience import Patience

SOCKET_BUFFER_BYTES = 4 << 20
FIRST_BUFFER_BYTES = 1 << 20


class StreamLink:
    """See `ClientLink`. Answers come in any order; those not yet waited for are kept."""

    def __init__(self, address: Address, secret: bytes) -> None:
        """Connect and prove knowledge of the mesh's secret.

        Raises:
            OSError: nobody listens. HandshakeError: wrong peer or wrong secret.
        """
        self.address = address
        self._socket = connect(address, CONNECT_TIMEOUT_S)
        try:
            greet_server(self._socket, secret)
            self.incarnation = receive_welcome(self._socket)
            for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
                self._socket.setsockopt(socket.SOL_SOCKET, option, SOCKET_BUFFER_BYTES)
            self._socket.setblocking(False)
        except BaseException:
            self._socket.close()
            raise
        self._out = bytearray(HEADER_BYTES + FIRST_BUFFER_BYTES)
        self._in = bytearray(FIRST_BUFFER_BYTES)
        self._head = bytearray(HEADER_BYTES)
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLIN)
        self._waiting: set[int] = set()
        self._early: dict[int, tuple[Header, memoryview]] = {}
        self._patience = Patience()
        self._spin_until_s = 0.0
        self._blocked = False

    def body(self, length: int, answer_length: int) -> memoryview:
        if HEADER_BYTES + length > len(self._out):
            self._out = bytearray(HEADER_BYTES + 2 * length)
        return memoryview(self._out)[HEADER_BYTES : HEADER_BYTES + length]

    def post(self, header: Header) -> None:
        header.pack_into(self._out)
        self._waiting.add(header.call_id)
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
        answer = self._early.pop(call_id, None)
        if answer is None:
            start_s = time.perf_counter()
            self._spin_until_s = start_s + self._patience.spin_s
            self._blocked = False
            answer = self._receive_answer(call_id, deadline_s)
            waited_s = time.perf_counter() - start_s
            # Only a wait that never blocked shows whether the core was lost while it spun.
            self._patience.learn(waited_s, 0.0 if self._blocked else waited_s)
        self._waiting.discard(call_id)
        header, body = answer
        if header.kind is FrameKind.ERROR:
            raise RemoteError(bytes(body).decode(errors="replace"), Fault(header.rows))
        return header, body

    def forget(self, call_id: int) -> None:
        self._waiting.discard(call_id)
        self._early.pop(call_id, None)

    def _receive_answer(self, call_id: int, deadline_s: float) -> tuple[Header, memoryview]:
        while True:
            header, body = self._receive_frame(deadline_s)
            if header.call_id == call_id:
                return header, body
            if header.call_id in self._waiting:
                self._early[header.call_id] = header, memoryview(bytes(body))

    def _receive_frame(self, deadline_s: float) -> tuple[Header, memoryview]:
        self._receive(memoryview(self._head), deadline_s)
        try:
            header = unpack_header(self._head)
        except FrameError as error:
            raise LinkClosed(f"{self.address}: {error}") from error
        if header.body_bytes > len(self._in):
            self._in = bytearray(2 * header.body_bytes)
        body = memoryview(self._in)[: header.body_bytes]
        self._receive(body, deadline_s)
        return header, body

    def _receive(self, target: memoryview, deadline_s: float) -> None:
        while target:
            try:
                count = self._socket.recv_into(target)
            except BlockingIOError:
                if time.perf_counter() < self._spin_until_s:
                    os.sched_yield()
                    continue
                self._blocked = True
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
