"""Where an actor listens: addresses as config text, made ready to bind."""

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from actors.wire.address import Address, parse_address

RUN_FOLDER_PREFIX = "xmesh-"
"""How the name of a mesh's run folder begins; sockets lie in a folder of it."""
THIS_NODE = "node"
"""Host part of `tcp:node:0`: the address other nodes of the Ray cluster reach this one at."""


def ready_to_listen(texts: Sequence[str]) -> list[Address]:
    """Addresses to bind: folders of Unix sockets exist (mode 0700), stale sockets are gone.

    Raises:
        ValueError: a text that is no address.
    """
    return [_ready(parse_address(text)) for text in texts]


def remove_sockets(texts: Sequence[str]) -> None:
    """Remove what `ready_to_listen` made on this node: sockets, then their folders if the last one
    is gone. Idempotent."""
    for address in map(parse_address, texts):
        if not address.is_unix:
            continue
        path = Path(address.host)
        path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # others listen there still
            path.parent.rmdir()
            if path.parent.parent.name.startswith(RUN_FOLDER_PREFIX):
                path.parent.parent.rmdir()


def _ready(address: Address) -> Address:
    if address.is_unix:
        path = Path(address.host)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        return address
    if address.host == THIS_NODE:
        import ray

        host = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
        return replace(address, host=str(host))
    return address
