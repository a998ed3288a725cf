"""Where the controller's directory listens, and what dispatchers are told. Pure.

A controller that comes after another one listens where dispatchers know its predecessor from. Where
the head node is another machine now, it keeps the port, and the name under which others reach it
(`cluster.head_host`) leads to the new one.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from actors.listening import THIS_NODE
from actors.wire.address import Address, parse_address


def to_listen(before: Iterable[str], socket: str, tcp: str | None) -> list[str]:
    """Addresses to bind. before: those of the controller before. socket: of a Unix socket. tcp: for
    other nodes, None where there are none."""
    known = list(map(parse_address, before))
    if not known:
        return [socket, *([tcp] if tcp else [])]
    return [
        str(address if address.is_unix or tcp is None else replace(address, host=THIS_NODE))
        for address in known
    ]


def to_tell(listening: Sequence[Address], head_host: str | None) -> list[Address]:
    """What dispatchers are told: on other nodes they use the head node's name, if it has one."""
    return [
        address if address.is_unix or head_host is None else replace(address, host=head_host)
        for address in listening
    ]
