"""Addresses of sockets: `unix:/path` on one node, `tcp:host:port` between nodes."""

import contextlib
import socket
from dataclasses import dataclass
from pathlib import Path

from actors.wire.ports import listen_on, parse_ports
from actors.wire.private_folder import require_private
from actors.wire.tcp_options import set_tcp_options

# Linux keeps 108 bytes for a Unix socket's path, one of them the closing zero.
MAX_UNIX_PATH = 107
BACKLOG = 256
"""Clients that may wait for a server that computes."""


@dataclass(frozen=True, slots=True)
class Address:
    """One endpoint; `host` is the path of a Unix socket and `port` None there.

    last_port: a server may listen on any port from `port` to this one; only before it listens.
    """

    host: str
    port: int | None = None
    last_port: int | None = None

    @property
    def ports(self) -> range:
        """Those that a server may take; 0 stands for any."""
        first = self.port or 0
        return range(first, (self.last_port or first) + 1)

    @property
    def is_unix(self) -> bool:
        return self.port is None

    @property
    def scheme(self) -> str:
        """Names the transport, see `actors.wire.transports`."""
        return "unix" if self.is_unix else "tcp"

    def __str__(self) -> str:
        if self.is_unix:
            return f"unix:{self.host}"
        last = f"-{self.last_port}" if self.last_port else ""
        return f"tcp:{self.host}:{self.port}{last}"


def parse_address(text: str) -> Address:
    """Read `unix:/path`, `tcp:host:port` or, for a server, `tcp:host:first-last`.

    Raises:
        ValueError: anything else; the message names the text and both forms.
    """
    scheme, _, rest = text.partition(":")
    if scheme == "unix" and rest.startswith("/"):
        if len(rest.encode()) > MAX_UNIX_PATH:
            raise ValueError(f"Unix socket path is longer than {MAX_UNIX_PATH} bytes: {rest}")
        return Address(rest)
    host, _, port = rest.rpartition(":")
    if scheme == "tcp" and host:
        with contextlib.suppress(ValueError):
            ports = parse_ports(port)
            return Address(host, ports[0], ports[-1] if len(ports) > 1 else None)
    raise ValueError(f"address {text!r} is neither unix:/path nor tcp:host:port")


def listen(address: Address) -> tuple[socket.socket, Address]:
    """A listening socket and the address it really has (port 0, or a range, becomes a real one).

    Raises:
        OSError: the address is taken. PermissionError: others can reach a Unix socket's folder.
    """
    if address.is_unix:
        require_private(Path(address.host).parent)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.bind(address.host)
        sock.listen(BACKLOG)
        return sock, address
    sock = listen_on(address.host, address.ports, BACKLOG)
    return sock, Address(address.host, sock.getsockname()[1])


def connect(address: Address, timeout_s: float) -> socket.socket:
    """A connected socket.

    Raises:
        OSError: nobody listens there, or not within `timeout_s`.
        PermissionError: others can reach a Unix socket's folder.
    """
    if address.is_unix:
        require_private(Path(address.host).parent)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(timeout_s)
        try:
            sock.connect(address.host)
        except OSError:
            sock.close()
            raise
        return sock
    sock = socket.create_connection((address.host, address.port or 0), timeout=timeout_s)
    set_tcp_options(sock)
    return sock
