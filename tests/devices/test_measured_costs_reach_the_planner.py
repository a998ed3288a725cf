"""From what shards measured to what they are given: the constant of a call, the cost of a row."""

from collections.abc import Sequence

import numpy as np
import pytest

from actors.descriptions import Held, ShardDescription
from actors.experts.formats.bf16 import BF16
from orchestrator.config.pools import PoolConfig
from orchestrator.control.keys import NO_KEYS
from orchestrator.control.plan_request import PlanRequest, ShardRoom
from orchestrator.control.planning import make_plan
from orchestrator.runtime.describing import Describer
from orchestrator.runtime.intent import keys_of
from placement.cost_model import DeviceCost, WayCost
from tests.actors.kernels.building import make_spec

SPEC = make_spec(BF16, num_experts=60)
PLAIN = DeviceCost(call_s=1e-5, read_s=1e-6, row_s=1e-6)


def said(cost: DeviceCost) -> ShardDescription:
    held = Held(0, (0, 0), frozenset(), frozenset(), "")
    return ShardDescription(
        7, 1, "node", (), "print", "kernel", SPEC.bytes_per_expert, 1 << 30, cost, held,
        "", 0, 0, 0, 0.0,
    )  # fmt: skip


def given(*costs: DeviceCost, ways: Sequence[WayCost | None] = (None, None)) -> list[float]:
    """Part of the load of each shard of these measured costs, with room for half the experts."""
    pool = PoolConfig(vendor="nvidia", device="cuda")
    describer, keys, rooms = Describer(SPEC), keys_of(SPEC), {}
    half = (len(keys) // 2 + 1) * SPEC.bytes_per_expert
    for number, (cost, way) in enumerate(zip(costs, ways, strict=True)):
        tells = describer.shard(said(cost), pool, half, way, len(costs))
        rooms[f"s{number}"] = ShardRoom(
            tells.capacity_bytes, tells.key_bytes, tells.rate, tells.call_rows
        )
    load = np.tile(1000.0 / np.arange(1, SPEC.num_experts + 1), (len(SPEC.layers), 1))
    plan = make_plan(
        PlanRequest(
            keys=keys, shards=rooms, current=dict.fromkeys(rooms, NO_KEYS), load=load,
            planned_load=None, min_copies=1, anew=True, dry_run=False, reason="", most_redundant=0,
        )
    )  # fmt: skip
    return [
        sum(load[0, key.number] for key in plan.target[f"s{number}"]) / load.sum()
        for number in range(len(costs))
    ]


def test_shards_alike_are_given_alike() -> None:
    one, two = given(PLAIN, PLAIN)
    assert one == pytest.approx(two, rel=0.05)


def test_a_shard_of_slow_rows_is_given_less() -> None:
    slow = DeviceCost(PLAIN.call_s, 3 * PLAIN.read_s, 3 * PLAIN.row_s)
    quick, other = given(PLAIN, slow)
    assert other == pytest.approx(quick / 3, rel=0.3)


def test_a_shard_of_slow_calls_is_given_less_though_its_rows_are_as_quick() -> None:
    """The constant counts as rows it could have done meanwhile."""
    slow = DeviceCost(20 * PLAIN.call_s, PLAIN.read_s, PLAIN.row_s)
    quick, other = given(PLAIN, slow)
    assert other < 0.8 * quick


def test_a_shard_behind_a_slow_way_is_given_less() -> None:
    """64 values to a row: 384 bytes there and back, of which three rows come with four
    assignments."""
    slow = WayCost(0.0, 1e-6 / 100)
    near, far = given(PLAIN, PLAIN, ways=(None, slow))
    row_s = PLAIN.row_s + 0.4 * PLAIN.read_s
    assert far / near == pytest.approx(row_s / (row_s + 0.75 * 384 * slow.byte_s), rel=0.3)
    assert far < 0.6 * near


def test_a_shard_behind_a_long_way_is_given_less() -> None:
    near, far = given(PLAIN, PLAIN, ways=(None, WayCost(20 * PLAIN.call_s, 0.0)))
    assert far < 0.8 * near
