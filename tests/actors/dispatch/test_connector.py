"""Peers that cannot be reached are tried again, ever less often, until nobody wants them."""

import itertools
import threading
import time

from actors.dispatch.connector import FIRST_PAUSE_S, Connector
from actors.wire.address import Address
from actors.wire.link import ClientLink
from tests.actors.fakes import StaticViews, epoch, view

HELD = [{0: list(range(8))}]
TRIES = 5


def test_pauses_grow_and_end_with_the_connector() -> None:
    tried_s: list[float] = []
    enough = threading.Event()

    def refuse(_: Address) -> ClientLink:
        tried_s.append(time.monotonic())
        if len(tried_s) == TRIES:
            enough.set()
        raise ConnectionRefusedError("nobody listens")

    others = set(threading.enumerate())
    views = StaticViews(view(epoch(HELD), [Address("/nowhere/shard")]))
    connector = Connector(views, lambda seen: seen.shards, refuse)
    assert enough.wait(60)
    connector.close()
    for thread in set(threading.enumerate()) - others:
        thread.join(60)
        assert not thread.is_alive(), "nobody is tried after close"
    for doublings, (before_s, after_s) in enumerate(itertools.pairwise(tried_s)):
        assert after_s - before_s >= FIRST_PAUSE_S / 2 * 2**doublings
