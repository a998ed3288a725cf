"""What a view derives from its parts."""

from dataclasses import replace

import numpy as np
import pytest

from actors.dispatch.mesh_view import Peer, ViewVersion
from actors.wire.address import Address
from tests.actors.dispatch.views import random_view

HOME, AWAY = Address("/tmp/s"), Address("10.0.0.1", 9)


def test_versions_are_ordered_by_term_first() -> None:
    assert ViewVersion(1, 9) < ViewVersion(2, 1) < ViewVersion(2, 2)
    assert str(ViewVersion(2, 1)) == "2.1"


def test_a_peer_is_reached_by_its_socket_at_home_and_over_tcp_from_elsewhere() -> None:
    peer = Peer("s", 1, "here", (HOME, AWAY))
    assert peer.addresses_from("here") == (HOME, AWAY)
    assert peer.addresses_from("there") == (AWAY,)
    assert Peer("s", 1, "here", (AWAY, HOME)).addresses_from("here") == (HOME, AWAY)
    with pytest.raises(LookupError, match="s on node here has no address for node there"):
        Peer("s", 1, "here", (HOME,)).addresses_from("there")


def test_cost_counts_the_weight_in() -> None:
    view = random_view(np.random.default_rng(0), shards=2)
    weights = (0.5, 0.0)
    shards = tuple(
        replace(peer, weight=weight) for peer, weight in zip(view.shards, weights, strict=True)
    )
    cost = replace(view, shards=shards).cost
    first = shards[0].cost
    assert cost[0].tolist() == [2 * first.call_s, 2 * first.read_s, 2 * first.row_s]
    assert np.isinf(cost[1]).all(), "suspected: the last choice"
    assert not cost.flags.writeable


def test_shards_fit_the_plan_and_differ() -> None:
    view = random_view(np.random.default_rng(0), shards=3)
    with pytest.raises(ValueError, match="plan for 3 shards, 2 are listed"):
        replace(view, shards=view.shards[:2])
    with pytest.raises(ValueError, match="same id"):
        replace(view, shards=(*view.shards[:2], view.shards[0]))


def test_a_table_is_built_once_for_an_epoch() -> None:
    view = random_view(np.random.default_rng(0))
    newer = view.with_routers((), ViewVersion(1, 2))
    assert newer.table is view.table
    assert newer.routers == ()
    other = replace(view, epoch=replace(view.epoch, number=2))
    assert other.table is not view.table
    assert other.table.epoch == 2
