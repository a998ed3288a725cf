"""What other pool sizes would come to: planned by the real planner, over the gateway too."""

import asyncio
import json

import numpy as np
import pytest

from orchestrator.gateway.app import build_app
from orchestrator.gateway.config import GatewayConfig
from orchestrator.telemetry.what_if import Impossible, ShardRoom, resized, what_if
from tests.dashboards.moving_mesh import moving_mesh
from tests.orchestrator.gateway.fakes import call

POOLS = {"nvidia": 1.0, "ascend": 2.0, "cambricon": 1.0, "cpu": 2.0}


def rooms(room=100):
    return [ShardRoom(f"{pool}-0", pool, room, speed, 64) for pool, speed in POOLS.items()]


def answer(sizes, room=100, min_copies=1):
    mesh = moving_mesh()
    load = mesh.popularity * 1000
    placement = asyncio.run(mesh.placement())
    return what_if(load, rooms(room), placement, sizes, min_copies)


def test_more_shards_make_it_faster_and_fewer_slower():
    same, more, fewer = answer({}), answer({"ascend": 3}), answer({"ascend": 0})
    assert same.now.shards == same.then.shards == 4
    assert same.then.balancedness >= same.now.balancedness
    assert more.time_ratio < same.time_ratio < fewer.time_ratio
    # Six units of speed become ten, and hot experts are the limit before that.
    assert 6 / 10 - 0.01 <= more.then.slowest / same.then.slowest < 0.9
    assert more.then.shards == 6
    assert more.bytes_to_load == 64 * more.copies_to_load > 0
    assert set(fewer.then.share_of_load) == {"nvidia-0", "cambricon-0", "cpu-0"}
    assert sum(more.then.share_of_load.values()) == pytest.approx(1, abs=0.001)


def test_what_a_loss_would_take():
    assert not answer({}, room=70).survives_any_shard
    twice = answer({}, room=200, min_copies=2)
    assert twice.survives_any_shard
    assert twice.then.least_copies == 2


@pytest.mark.parametrize(
    ("sizes", "message"),
    [({"tpu": 2}, "there is no pool tpu"), ({"ascend": 0, "cpu": 0}, "too little memory")],
)
def test_what_cannot_be_is_said(sizes, message):
    with pytest.raises(Impossible, match=message):
        answer(sizes, room=70)


def test_pools_shrink_from_their_end():
    pool = [ShardRoom(f"a-{n}", "a", 10 * n, 1.0, 1) for n in (10, 2, 9)]
    assert [shard.id for shard in resized(pool, {"a": 2})] == ["a-2", "a-9"]
    grown = resized(pool, {"a": 4})[-1]
    assert (grown.id, grown.room) == ("a-11", 70)


def test_the_route_plans_and_changes_nothing():
    mesh = moving_mesh()

    async def main(*bodies):
        app = build_app(GatewayConfig(mesh="test", model_name="tiny"), mesh, frozenset())
        async with app.router.lifespan_context(app), asyncio.timeout(60):
            while (await call(app, "GET", "/api/v1/telemetry")).json().get("number") is None:
                await asyncio.sleep(0.02)
            return [
                await call(app, "POST", "/api/v1/what-if", json.dumps(body).encode())
                for body in bodies
            ]

    good, wrong, impossible = asyncio.run(
        main({"pools": {"ascend": 2}, "load": "even"}, {"pools": {"a": -1}}, {"pools": {"a": 1}})
    )
    said = good.json()
    assert (said["load"], said["then"]["shards"]) == ("even", 5)
    assert said["time_ratio"] < 1
    assert (wrong.status, impossible.status) == (400, 409)
    assert "there is no pool a" in impossible.json()["error"]["message"]
    assert mesh.asked == []
    assert np.array(list(said["then"]["share_of_load"].values())).min() > 0
