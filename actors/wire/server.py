"""Server side of the data links: one event loop that never blocks on a peer.

Reads and writes are non-blocking and answers are queued, so no chain of clients and servers that
wait for one another can lock up. A connection that sends anything but a frame is closed with a
logged reason; the others do not notice. Frames that are complete after one poll are handed over
together, so the handler can merge those of one layer into one kernel call.
"""

import contextlib
import logging
import os
import selectors
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from actors.wire.address import Address, listen
from actors.wire.frame import (
    HEADER_BYTES,
    MAX_ERROR_BYTES,
    FrameError,
    FrameKind,
    Header,
    unpack_header,
)
from actors.wire.handshake import greet_client

log = logging.getLogger(__name__)

HANDSHAKE_TIMEOUT_S = 2.0
INITIAL_BUFFER_BYTES = 1 << 16
SOCKET_BUFFER_BYTES = 4 << 20


@dataclass(slots=True, eq=False)
class Connection:
    """One client. `frame()` is complete when `header` is set and `filled` reached its length."""

    sock: socket.socket
    peer: str
    head: bytearray = field(default_factory=lambda: bytearray(HEADER_BYTES))
    buffer: bytearray = field(default_factory=lambda: bytearray(INITIAL_BUFFER_BYTES))
    header: Header | None = None
    filled: int = 0
    outgoing: list[memoryview] = field(default_factory=list)
    closed: bool = False

    def read(self) -> bool:
        """Take what is there; True when a whole frame is. Raises FrameError, OSError, EOFError."""
        if self.header is None:
            if not self._fill(memoryview(self.head)):
                return False
            self.header, self.filled = unpack_header(self.head), 0
            if self.header.body_bytes > len(self.buffer):
                self.buffer = bytearray(2 * self.header.body_bytes)
        return self._fill(memoryview(self.buffer)[: self.header.body_bytes])

    def _fill(self, target: memoryview) -> bool:
        while self.filled < len(target):
            try:
                count = self.sock.recv_into(target[self.filled :])
            except BlockingIOError:
                return False
            if count == 0:
                raise EOFError
            self.filled += count
        return True

    def take(self) -> tuple[Header, memoryview]:
        """The complete frame; its body is valid until the next `read`."""
        assert self.header is not None
        header, self.header, self.filled = self.header, None, 0
        return header, memoryview(self.buffer)[: header.body_bytes]


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """A complete frame and where its answer goes."""

    header: Header
    body: memoryview
    connection: Connection


Handler = Callable[[Sequence[Request]], None]


class FrameServer:
    """Listens on `addresses` and calls `handler` with each batch of complete frames."""

    def __init__(self, addresses: Sequence[Address], secret: bytes, handler: Handler) -> None:
        """Bind at once, so that `addresses` holds real ports; serve with `run`.

        Raises:
            OSError: an address is taken.
        """
        self._secret = secret
        self._handler = handler
        self._selector = selectors.DefaultSelector()
        self._listeners: list[socket.socket] = []
        self.addresses: list[Address] = []
        for address in addresses:
            sock, real = listen(address)
            sock.setblocking(False)
            self._selector.register(sock, selectors.EVENT_READ, real)
            self._listeners.append(sock)
            self.addresses.append(real)
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        self._selector.register(self._wake_read, selectors.EVENT_READ, None)
        self._stopping = False

    def run(self) -> None:
        """Serve until `stop`; call from one thread only."""
        try:
            while not self._stopping:
                self._turn()
        finally:
            self._close_all()

    def stop(self) -> None:
        """End `run` from another thread."""
        self._stopping = True
        with contextlib.suppress(OSError):
            os.write(self._wake_write, b"x")

    def _turn(self) -> None:
        ready: list[Request] = []
        for key, events in self._selector.select():
            if isinstance(key.data, Address):
                self._accept(key.fileobj, key.data)  # type: ignore[arg-type]
            elif isinstance(key.data, Connection):
                self._serve(key.data, events, ready)
        if ready:
            self._handler(ready)

    def _serve(self, connection: Connection, events: int, ready: list[Request]) -> None:
        try:
            if events & selectors.EVENT_WRITE:
                self._flush(connection)
            if events & selectors.EVENT_READ and connection.read():
                ready.append(Request(*connection.take(), connection))
        except EOFError:
            self._drop(connection, "closed by the client", logging.DEBUG)
        except FrameError as error:
            self._drop(connection, str(error), logging.WARNING)
        except OSError as error:
            self._drop(connection, str(error), logging.INFO)

    def _accept(self, listener: socket.socket, address: Address) -> None:
        try:
            sock, peer = listener.accept()
        except OSError as error:
            log.warning("accept on %s failed: %s", address, error)
            return
        try:
            if not address.is_unix:
                sock.settimeout(HANDSHAKE_TIMEOUT_S)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                greet_client(sock, self._secret)
            for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
                sock.setsockopt(socket.SOL_SOCKET, option, SOCKET_BUFFER_BYTES)
            sock.setblocking(False)
        except (FrameError, OSError) as error:
            log.warning("refused a client of %s from %s: %s", address, peer or "this node", error)
            sock.close()
            return
        connection = Connection(sock, f"{address} <- {peer or 'this node'}")
        self._selector.register(sock, selectors.EVENT_READ, connection)

    def answer(self, request: Request, header: Header, body: memoryview) -> None:
        """Send an answer, or queue what the socket does not take now.

        The body may be reused as soon as this returns: what had to be queued was copied.
        """
        connection = request.connection
        if connection.closed:
            return
        head = bytearray(HEADER_BYTES)
        header.pack_into(head)
        pending = connection.outgoing
        idle = not pending
        rest = [memoryview(head), body]
        if idle:
            try:
                sent = connection.sock.sendmsg(rest)
            except BlockingIOError:
                sent = 0
            except OSError as error:
                self._drop(connection, str(error), logging.INFO)
                return
            rest = _after(rest, sent)
        if rest:
            pending.extend(memoryview(bytes(part)) for part in rest)
            if idle:
                self._selector.modify(
                    connection.sock, selectors.EVENT_READ | selectors.EVENT_WRITE, connection
                )

    def refuse(self, request: Request, reason: str) -> None:
        """Answer with an ERROR frame; the connection stays."""
        text = reason.encode()[:MAX_ERROR_BYTES]
        header = Header(FrameKind.ERROR, request.header.call_id, len(text))
        self.answer(request, header, memoryview(text))

    def _flush(self, connection: Connection) -> None:
        while connection.outgoing:
            try:
                sent = connection.sock.send(connection.outgoing[0])
            except BlockingIOError:
                return
            connection.outgoing[:] = _after(connection.outgoing, sent)
        self._selector.modify(connection.sock, selectors.EVENT_READ, connection)

    def _drop(self, connection: Connection, reason: str, level: int) -> None:
        log.log(level, "closing %s: %s", connection.peer, reason)
        connection.closed = True
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(connection.sock)
        connection.sock.close()

    def _close_all(self) -> None:
        for key in list(self._selector.get_map().values()):
            if isinstance(key.data, Connection):
                key.data.sock.close()
        for sock, address in zip(self._listeners, self.addresses, strict=True):
            sock.close()
            if address.is_unix:
                with contextlib.suppress(OSError):
                    os.unlink(address.host)
        self._selector.close()
        os.close(self._wake_read)
        os.close(self._wake_write)


def _after(parts: list[memoryview], sent: int) -> list[memoryview]:
    """What is left of `parts` once `sent` bytes of them have gone."""
    rest = []
    for part in parts:
        if sent >= len(part):
            sent -= len(part)
        else:
            rest.append(part[sent:])
            sent = 0
    return rest
