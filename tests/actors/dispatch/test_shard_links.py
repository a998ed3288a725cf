"""Following a new view: links stay where their shards do, costs and coding are the view's."""

import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import replace

import numpy as np
import pytest

from actors.dispatch.connector import same_links
from actors.dispatch.mesh_view import MeshView, ViewVersion
from actors.dispatch.shard_links import CODING, SCALE, ShardLinks
from actors.wire.address import Address
from actors.wire.frame import RowCoding
from actors.wire.server import FrameServer
from placement.cost_model import DeviceCost
from tests.actors.fakes import StaticViews, epoch, running, view

SECRET = b"a test's secret"
WAIT_S = 60.0
FULL = {0: [0, 1, 2, 3, 4, 5, 6, 7], 1: [0, 1, 2, 3, 4, 5, 6, 7]}


@pytest.fixture
def first() -> Iterator[MeshView]:
    """A view of two shards that listen on TCP, as on another node."""
    with ExitStack() as stack:
        servers = [FrameServer([Address("127.0.0.1", 0)], SECRET, lambda _: None) for _ in range(2)]
        for server in servers:
            stack.enter_context(running(server))
        yield view(epoch([FULL, FULL]), [server.addresses[0] for server in servers])


def wait_linked(links: ShardLinks) -> None:
    end_s = time.monotonic() + WAIT_S
    links.follow()
    while not links.usable(set()).all():
        assert time.monotonic() < end_s, "no links to the shards"
        time.sleep(0.01)
        links.follow()


def newer(before: MeshView, **changes: object) -> MeshView:
    version = ViewVersion(before.version.term, before.version.number + 1)
    return replace(before, version=version, **changes)  # type: ignore[arg-type]


def test_new_costs_and_weights_are_taken_over_and_links_stay(first: MeshView) -> None:
    views = StaticViews(first)
    with closing(ShardLinks(views, SECRET)) as links:
        wait_linked(links)
        table = links.table
        slower = replace(first.shards[1], cost=DeviceCost(1.0, 2.0, 3.0), weight=0.5)
        second = newer(first, shards=(first.shards[0], slower))
        views.publish(second)
        assert links.follow() is second
        assert links.cost.tolist() == second.cost.tolist()
        assert links.cost[1].tolist() == [2.0, 4.0, 6.0]
        assert links.table is table, "nothing was built"
        assert table.service[:, :SCALE].tolist() == [
            [cost.call_s, cost.read_s, cost.row_s] for cost in (peer.cost for peer in second.shards)
        ]


def test_a_late_shard_stays_the_last_choice_under_a_new_view(first: MeshView) -> None:
    views = StaticViews(first)
    with closing(ShardLinks(views, SECRET)) as links:
        wait_linked(links)
        late = links.table.links[0]
        assert late is not None
        links.mark_late(late)
        assert np.isinf(links.cost[0]).all()
        views.publish(newer(first))
        links._take_costs(first, views.current())
        assert np.isinf(links.cost[0]).all()
        assert np.isfinite(links.cost[1]).all()


def test_another_coding_of_rows_is_taken_over(first: MeshView) -> None:
    views = StaticViews(first)
    with closing(ShardLinks(views, SECRET)) as links:
        wait_linked(links)
        assert links.table.slots[:, CODING].tolist() == [RowCoding.BF16] * 2
        views.publish(newer(first, rows_between_nodes=RowCoding.FP8))
        links.follow()
        assert links.table.slots[:, CODING].tolist() == [RowCoding.FP8] * 2


def test_device_ipc_is_turned_off_over_links_that_share(first: MeshView) -> None:
    """The table no longer offers the area; the same links stay."""
    views = StaticViews(first)
    with closing(ShardLinks(views, SECRET)) as links:
        wait_linked(links)
        for link in links.table.links:
            assert link is not None
            link.area = object()  # type: ignore[assignment]
        links.changes += 1
        before = links.table
        assert before.shares
        views.publish(newer(first, device_ipc=False))
        links.follow()
        assert not links.table.shares
        assert links.table.links == before.links
        for link in links.table.links:
            assert link is not None
            link.area = None


def test_links_follow_who_is_behind_an_id(first: MeshView) -> None:
    a, b = first.shards
    assert same_links((a, b), (replace(a, weight=0.0), replace(b, cost=DeviceCost(1, 1, 1))))
    for other in (
        (a,),
        (b, a),
        (a, replace(b, incarnation=9)),
        (a, replace(b, id="other")),
        (a, replace(b, node="elsewhere else")),
        (a, replace(b, addresses=(Address("127.0.0.1", 1),))),
    ):
        assert not same_links((a, b), other)
