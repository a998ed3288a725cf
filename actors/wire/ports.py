"""Ranges of TCP ports, of which a server takes the first that is free."""

import errno
import re
import socket

_RANGE = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?")


def parse_ports(text: str) -> range:
    """Read `21000-21099`, one port, or `0` for any that is free.

    Raises:
        ValueError: anything else.
    """
    found = _RANGE.fullmatch(text)
    first, last = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
    if not first <= last < 65536 or (first == 0 and last > 0):
        raise ValueError(f"{text!r} is no range of ports: write it as 21000-21099")
    return range(first, last + 1)


def listen_on(host: str, ports: range, backlog: int) -> socket.socket:
    """A listening socket on the first of these ports that nobody has.

    Raises:
        OSError: the port is taken, or every port of the range; the message names the range.
    """
    for port in ports:
        try:
            return socket.create_server((host, port), backlog=backlog)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or len(ports) == 1:
                raise
    raise OSError(
        errno.EADDRINUSE, f"every port of {ports[0]}-{ports[-1]} is taken: give cluster.ports more"
    )
