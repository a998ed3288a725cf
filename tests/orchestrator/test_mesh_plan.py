"""From memory and speed to the first plan."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.experts.spec import Activation, ExpertSpec, WeightFormat
from orchestrator.errors import UserError
from orchestrator.mesh_plan import ShardCapacity, limit_redundancy, plan_mesh, slots_of_memory
from placement.epoch import EMPTY_SLOT

SPEC = ExpertSpec(
    "TinyMoe", Path("/m"), (1, 2, 3), 8, 2, 64, 32, WeightFormat.BF16, Activation()
)  # fmt: skip
EACH = SPEC.bytes_per_expert


def shards(*experts: int, speeds: tuple[float, ...] = ()) -> list[ShardCapacity]:
    """Shards with room for so many experts."""
    return [
        ShardCapacity(f"s{n}", count * EACH, speeds[n] if speeds else 1.0, EACH)
        for n, count in enumerate(experts)
    ]


def test_memory_is_spread_over_the_layers() -> None:
    slots = slots_of_memory(SPEC, shards(14, 15))
    assert slots.tolist() == [[5, 5], [5, 5], [4, 5]]


def test_no_layer_gets_more_slots_than_experts() -> None:
    assert slots_of_memory(SPEC, shards(1000, 1)).tolist() == [[8, 1], [8, 0], [8, 0]]


def test_a_part_of_an_expert_is_no_slot() -> None:
    capacity = [ShardCapacity("s0", 24 * EACH + EACH - 1, 1.0, EACH)]
    assert slots_of_memory(SPEC, capacity).sum() == 24


def test_too_little_memory_names_what_is_missing() -> None:
    with pytest.raises(UserError, match=r"holds 23 experts .* TinyMoe has 24 .*raise `memory`"):
        slots_of_memory(SPEC, shards(12, 11))


def test_redundancy_is_taken_from_the_roomiest() -> None:
    slots = np.array([[8, 3], [5, 5], [4, 4]])
    assert limit_redundancy(slots, 8, 0).tolist() == [[5, 3], [4, 4], [4, 4]]
    assert limit_redundancy(slots, 8, 1).tolist() == [[6, 3], [4, 5], [4, 4]]
    assert limit_redundancy(slots, 8, "fill") is slots


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
        held = np.minimum(rooms, 24) // 3
        assert held.sum() < SPEC.num_experts
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
