"""Clients that connected but are not yet served: each has a deadline to say who it is.

Over TCP it must prove the mesh's secret; on a Unix socket, which only this user can open, it must
bring a segment. Reads do not block, so a client that says nothing only takes a place
among those that are on their way in.
"""

import logging
import os
import socket
import ssl
from typing import TYPE_CHECKING, Protocol

from actors.wire.connections import Connection, SharedConnection, StreamConnection
from actors.wire.frame import HEADER_BYTES, FrameError, FrameKind, Header, unpack_header
from actors.wire.handshake import ANSWER_BYTES, Challenge, welcome
from actors.wire.records import server_stream
from actors.wire.security import Protection, TcpSecurity
from actors.wire.segment import open_segment
from actors.wire.streams import ByteStream, PlainStream, TlsStream, send_all
from actors.wire.tcp_options import set_tcp_options

if TYPE_CHECKING:
    from actors.wire.device_area import DeviceArea
    from actors.wire.device_memory import DeviceMemory
    from actors.wire.tls import ServerTls

log = logging.getLogger(__name__)

SOCKET_BUFFER_BYTES = 4 << 20


class Arrival(Protocol):
    """One client before its first frame."""

    sock: socket.socket
    peer: str
    deadline_s: float

    def read(self) -> Connection | None:
        """The connection it became, which was sent WELCOME; None while more has to come.

        Raises:
            FrameError: it does not belong here. EOFError: it left. OSError.
        """
        ...

    def close(self) -> None: ...


class TcpHost:
    """What all TCP clients of a server meet: the mesh's secret and the protection of their links.

    Raises ValueError: the certificate that `security` names cannot be used.
    """

    def __init__(self, secret: bytes, security: TcpSecurity) -> None:
        self._secret = secret
        self.protection = security.protection
        self.tls = _server_tls(security) if self.protection is Protection.ENCRYPTED else None

    def challenge(self) -> Challenge:
        return Challenge(self._secret, self.protection, self.tls.digest if self.tls else b"")


def _server_tls(security: TcpSecurity) -> "ServerTls":
    from actors.wire.tls import ServerTls  # takes 50 ms to import, and few need it

    return ServerTls(security)


class TcpArrival:
    """Challenge and response, see `handshake.py`."""

    def __init__(
        self, sock: socket.socket, peer: str, deadline_s: float, incarnation: int, host: TcpHost
    ) -> None:
        """Raises OSError where the client has gone already."""
        self.sock, self.peer, self.deadline_s = sock, peer, deadline_s
        sock.setblocking(False)
        set_tcp_options(sock)
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            sock.setsockopt(socket.SOL_SOCKET, option, SOCKET_BUFFER_BYTES)
        self._incarnation, self._host = incarnation, host
        self._challenge = host.challenge()
        self._answer = b""
        sock.sendall(self._challenge.opening)  # a fresh socket has room for it
        self._tls: ssl.SSLSocket | None = None
        if host.tls is not None:
            self._tls = host.tls.context.wrap_socket(
                sock, server_side=True, do_handshake_on_connect=False
            )
            self.sock = self._tls

    def read(self) -> Connection | None:
        try:
            stream = self._stream()
            while len(self._answer) < ANSWER_BYTES:
                chunk = bytearray(ANSWER_BYTES - len(self._answer))
                count = stream.recv_into(memoryview(chunk))
                if not count:
                    raise EOFError
                self._answer += chunk[:count]
        except (BlockingIOError, ssl.SSLWantReadError):
            return None
        send_all(stream, self._challenge.accept(self._answer))
        if self._host.protection is Protection.AUTHENTICATED:
            stream = server_stream(self.sock, self._challenge.keys())
        send_all(stream, welcome(self._incarnation))
        return StreamConnection(self.sock, stream, self.peer)

    def _stream(self) -> ByteStream:
        """What the client's answer comes through. Raises SSLWantReadError: not yet there."""
        if self._tls is None:
            return PlainStream(self.sock)
        self._tls.do_handshake()
        return TlsStream(self._tls)

    def close(self) -> None:
        self.sock.close()


class UnixArrival:
    """An ATTACH frame that brings the descriptors of a segment and a bell, and perhaps an offer of
    device memory."""

    def __init__(
        self,
        sock: socket.socket,
        peer: str,
        deadline_s: float,
        incarnation: int,
        device: "DeviceMemory | None" = None,
    ) -> None:
        """device: of this server."""
        self.sock, self.peer, self.deadline_s = sock, peer, deadline_s
        sock.setblocking(False)
        self._incarnation, self._device = incarnation, device
        self._read = b""
        self._header: Header | None = None
        self._descriptors: list[int] = []

    def read(self) -> Connection | None:
        try:
            if self._header is None:
                if not self._has(HEADER_BYTES):
                    return None
                self._header, self._read = self._checked(unpack_header(self._read)), b""
            if not self._has(self._header.body_bytes):
                return None
        except BlockingIOError:
            return None
        area = self._take_offer(self._header) if self._header.body_bytes else None
        segment = open_segment(self._descriptors[0])
        os.close(self._descriptors.pop(0))
        self.sock.sendall(welcome(self._incarnation, area is not None))
        return SharedConnection(self.sock, self.peer, segment, self._descriptors.pop(), area)

    def _has(self, length: int) -> bool:
        """Whether so much has been read by now. Raises BlockingIOError, EOFError."""
        if len(self._read) < length:
            chunk, descriptors, _, _ = socket.recv_fds(self.sock, length - len(self._read), 2)
            self._descriptors += descriptors
            if not chunk:
                raise EOFError
            self._read += chunk
        return len(self._read) == length

    def _checked(self, header: Header) -> Header:
        if header.kind is not FrameKind.ATTACH or len(self._descriptors) != 2:
            raise FrameError(
                f"a client on this node begins with ATTACH and two descriptors, not with "
                f"{header.kind.name} and {len(self._descriptors)}"
            )
        return header

    def _take_offer(self, header: Header) -> "DeviceArea | None":
        """The client's device memory; None where this side cannot open it, and need not."""
        try:
            if self._device is None:
                raise ValueError("this server is on no device that shares memory")
            from actors.wire.device_area import open_area

            return open_area(self._device, self._read)
        except FrameError:
            raise
        except (ValueError, RuntimeError, OSError) as error:
            if header.rows:
                raise FrameError(f"no device memory for a larger link: {error}") from None
            log.info("%s: rows go through the host: %s", self.peer, error)
            return None

    def close(self) -> None:
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors.clear()
        self.sock.close()
