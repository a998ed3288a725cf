"""From memory and speed to the first plan."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.experts.formats.bf16 import BF16
from actors.experts.spec import Activation, ExpertSpec
from orchestrator.config.bytesize import format_bytes
from orchestrator.errors import UserError
from orchestrator.mesh_plan import ShardCapacity, plan_mesh, relative_speeds, slots_of_memory
from placement.cost_model import TYPICAL_COST, DeviceCost
from placement.epoch import EMPTY_SLOT

SPEC = ExpertSpec(
    "TinyMoe", Path("/m"), (1, 2, 3), 8, 2, 64, 32, BF16, Activation()
)  # fmt: skip
EACH = SPEC.bytes_per_expert


def shards(*experts: int, speeds: tuple[float, ...] = ()) -> list[ShardCapacity]:
    """Shards with room for so many experts."""
    return [
        ShardCapacity(
            f"s{n}", count * EACH, TYPICAL_COST.scaled(speeds[n] if speeds else 1.0), EACH
        )
        for n, count in enumerate(experts)
    ]


def test_memory_is_spread_over_the_layers() -> None:
    slots = slots_of_memory(SPEC, shards(14, 15))
    assert slots.sum(axis=0).tolist() == [14, 15]
    assert sorted(slots.sum(axis=1).tolist()) == [9, 10, 10]


def test_no_layer_gets_more_slots_than_experts() -> None:
    slots = slots_of_memory(SPEC, shards(1000, 1))
    assert slots[:, 0].tolist() == [8, 8, 8]
    assert slots[:, 1].sum() == 1


def test_a_part_of_an_expert_is_no_slot() -> None:
    capacity = [ShardCapacity("s0", 24 * EACH + EACH - 1, TYPICAL_COST, EACH)]
    assert slots_of_memory(SPEC, capacity).sum() == 24


def test_too_little_memory_names_what_is_missing() -> None:
    with pytest.raises(
        UserError, match=r"holds 23 experts .* TinyMoe has 24 .*raise `memory`"
    ) as of:
        slots_of_memory(SPEC, shards(12, 11))
    assert f": {format_bytes(EACH)} are missing" in str(of.value)
    with pytest.raises(UserError, match="add shards: 2 more like s1 would do"):
        slots_of_memory(SPEC, shards(4, 7))
    with pytest.raises(UserError, match=r"or add shards$"):
        slots_of_memory(SPEC, shards(0, 0))


def test_redundancy_is_limited_in_every_layer() -> None:
    for redundant in (0, 1, 3):
        slots = slots_of_memory(SPEC, shards(24, 15), redundant)
        assert slots.sum(axis=1).tolist() == [8 + redundant] * 3


def test_redundant_slots_go_where_the_load_is_lumpy() -> None:
    load = np.ones((3, 8))
    load[1] = [9, 9, 9, 1, 1, 1, 1, 1]
    slots = slots_of_memory(SPEC, shards(13, 14), load=load * 100)
    assert slots.sum(axis=1).tolist() == [8, 11, 8]


def test_shards_whose_experts_take_more_room_hold_fewer() -> None:
    wide = ShardCapacity("s1", 24 * EACH, TYPICAL_COST, 2 * EACH)
    slots = slots_of_memory(SPEC, [*shards(24), wide])
    assert slots.sum(axis=0).tolist() == [24, 12]


def test_speeds_count_reading_weights_too() -> None:
    """64 tokens choose 2 of 8 experts: a row in 16 reads one."""
    costs = [DeviceCost(0.0, 0.0, 2e-6), DeviceCost(0.0, 16e-6, 1e-6)]
    capacities = [ShardCapacity(f"s{n}", 24 * EACH, cost, EACH) for n, cost in enumerate(costs)]
    speed, offset = relative_speeds(SPEC, capacities)
    assert speed == pytest.approx([1.0, 1.0])
    assert offset.tolist() == [0.0, 0.0]


@settings(deadline=None)  # the first plan compiles the planner
@given(
    rooms=st.lists(st.integers(0, 40), min_size=1, max_size=5),
    redundant=st.one_of(st.just("fill"), st.integers(0, 6)),
    data=st.data(),
)
def test_every_plan_holds_each_expert_within_the_memory(rooms, redundant, data) -> None:
    speeds = tuple(data.draw(st.floats(0.1, 4.0)) for _ in rooms)
    capacities = shards(*rooms, speeds=speeds)
    try:
        plan = plan_mesh(SPEC, capacities, redundant, number=7)
    except UserError:
        assert np.minimum(rooms, 24).sum() < 3 * SPEC.num_experts
        return
    assert plan.epoch.number == 7
    assert plan.reason
    for row in range(len(SPEC.layers)):
        experts = plan.epoch.experts[row]
        assert set(experts[experts != EMPTY_SLOT]) == set(range(SPEC.num_experts))
        if redundant != "fill":
            assert (experts != EMPTY_SLOT).sum() <= SPEC.num_experts + redundant
    for shard, room in enumerate(rooms):
        assert len(plan.epoch.slots_of(shard)) <= room
