"""The bytes of a TCP connection after its handshake, however they are protected on their way."""

import socket
import ssl
from functools import partial
from typing import Protocol


class ByteStream(Protocol):
    """A connected socket's bytes; blocks or not as the socket does."""

    @property
    def pending(self) -> bool:
        """Bytes have been received that `recv_into` gives at once, though the socket may have
        nothing to read. Raises OSError."""
        ...

    def fileno(self) -> int: ...

    def setblocking(self, flag: bool) -> None: ...

    def settimeout(self, timeout_s: float | None) -> None: ...

    def send(self, data: memoryview) -> int:
        """Send some of `data`; returns how much. After a BlockingIOError it is to be called with
        the same data again.

        Raises:
            BlockingIOError, OSError.
        """
        ...

    def recv_into(self, target: memoryview) -> int:
        """Bytes received, 0 at the end.

        Raises:
            BlockingIOError, OSError.
        """
        ...

    def shutdown(self) -> None:
        """End the connection, also for a thread that is blocked in it. Raises OSError."""
        ...

    def close(self) -> None: ...


def send_all(stream: ByteStream, data: bytes | memoryview) -> None:
    """Send `data` on a blocking stream, or little of it on a fresh one. Raises OSError."""
    rest = memoryview(data)
    while rest:
        rest = rest[stream.send(rest) :]


def receive_exactly(stream: ByteStream, count: int) -> bytes:
    """The next `count` bytes of a blocking stream. Raises EOFError, OSError."""
    data = bytearray(count)
    rest = memoryview(data)
    while rest:
        got = stream.recv_into(rest)
        if got == 0:
            raise EOFError("the peer closed the connection")
        rest = rest[got:]
    return bytes(data)


class PlainStream:
    """See `ByteStream`: the bytes as they are."""

    pending = False

    def __init__(self, sock: socket.socket) -> None:
        self.fileno, self.close = sock.fileno, sock.close
        self.setblocking, self.settimeout = sock.setblocking, sock.settimeout
        self.shutdown = partial(sock.shutdown, socket.SHUT_RDWR)
        self.send, self.recv_into = sock.send, sock.recv_into


class TlsStream:
    """See `ByteStream`: TLS, its handshake done."""

    def __init__(self, sock: ssl.SSLSocket) -> None:
        self._sock = sock
        self.fileno, self.close = sock.fileno, sock.close
        self.setblocking, self.settimeout = sock.setblocking, sock.settimeout
        self.shutdown = partial(socket.socket.shutdown, sock, socket.SHUT_RDWR)

    @property
    def pending(self) -> bool:
        return self._sock.pending() > 0

    def send(self, data: memoryview) -> int:
        try:
            return self._sock.send(data)
        except (ssl.SSLWantWriteError, ssl.SSLWantReadError):
            raise BlockingIOError from None

    def recv_into(self, target: memoryview) -> int:
        try:
            return self._sock.recv_into(target)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise BlockingIOError from None
