"""Which address leads to a shard from here: a function, and the same as a process of its own.

python -m tests.actors.dispatch.reaching INCARNATION ADDRESS...
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace

from actors.dispatch.connector import Connector
from actors.dispatch.mesh_view import Peer
from actors.wire.address import Address, parse_address
from actors.wire.bell import Bell
from actors.wire.link import ClientLink
from actors.wire.node import node_id
from actors.wire.transports import open_link
from tests.actors.fakes import StaticViews, epoch, view
from tests.actors.wire.bare_server import SECRET

HELD = [{0: list(range(8)), 1: list(range(8))}]
WAIT_S = 60.0


def reached(
    incarnation: int,
    addresses: Sequence[Address],
    opening: Callable[[Address], ClientLink] | None = None,
) -> str:
    """Where a client on the peer's node got a link to it; "" where it got none.

    opening: instead of the transports' own function.
    """
    bell = Bell()
    given = view(epoch(HELD), addresses[:1])
    peer = Peer("shard-0", incarnation, node_id(), tuple(addresses))
    connector = Connector(
        StaticViews(replace(given, shards=(peer,))),
        lambda newest: newest.shards,
        opening or (lambda address: open_link(address, SECRET, bell)),
    )
    connector.wait_tried(WAIT_S)
    links = [link for _, link in connector.take()]
    found = str(links[0].address) if links else ""
    for link in links:
        link.close()
    connector.close()
    bell.close()
    return found


if __name__ == "__main__":
    print(reached(int(sys.argv[1]), [parse_address(text) for text in sys.argv[2:]]))
