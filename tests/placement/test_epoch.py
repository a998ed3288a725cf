"""A plan epoch checks its invariants and lists every expert's replicas."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from placement.epoch import EMPTY_SLOT, PlanEpoch


@st.composite
def placements(draw: st.DrawFn) -> tuple[np.ndarray, int]:
    """(experts [L, D, S], number of experts), every expert on a random non-empty set of shards."""
    layers, shards = draw(st.integers(1, 3)), draw(st.integers(1, 5))
    num_experts = draw(st.integers(1, 9))
    held = np.full((layers, shards, num_experts + 1), EMPTY_SLOT, np.int32)
    homes = st.sets(st.integers(0, shards - 1), min_size=1)
    for row in range(layers):
        for expert in range(num_experts):
            for shard in draw(homes):
                held[row, shard, expert] = expert
        for shard in range(shards):
            held[row, shard] = draw(st.permutations(held[row, shard].tolist()))
    return held, num_experts


def made(held: np.ndarray, num_experts: int) -> PlanEpoch:
    layers = tuple(range(3, 3 + len(held)))
    return PlanEpoch(1, num_experts, layers, held, np.ones(held.shape))


@settings(deadline=None)
@given(placements())
def test_replicas_are_the_shards_that_hold_an_expert(case: tuple[np.ndarray, int]) -> None:
    held, num_experts = case
    plan = made(held, num_experts)
    for row in range(len(held)):
        for expert in range(num_experts):
            copy = row * num_experts + expert
            found = plan.replicas[plan.first_replica[copy] : plan.first_replica[copy + 1]]
            assert found.tolist() == np.flatnonzero((held[row] == expert).any(axis=1)).tolist()
    assert plan.first_replica[-1] == plan.replicas.size == (held != EMPTY_SLOT).sum()
    assert not plan.replicas.flags.writeable


@settings(deadline=None)
@given(placements(), st.data())
def test_a_lost_expert_is_named(case: tuple[np.ndarray, int], data: st.DataObject) -> None:
    held, num_experts = case
    row = data.draw(st.integers(0, len(held) - 1))
    expert = data.draw(st.integers(0, num_experts - 1))
    held[row][held[row] == expert] = EMPTY_SLOT
    with pytest.raises(ValueError, match=rf"layer {3 + row}: experts \[{expert}\] have no slot"):
        made(held, num_experts)


@settings(deadline=None)
@given(placements(), st.data())
def test_a_double_is_named(case: tuple[np.ndarray, int], data: st.DataObject) -> None:
    held, num_experts = case
    row, shard, slot = data.draw(st.sampled_from(np.argwhere(held != EMPTY_SLOT).tolist()))
    empty = np.flatnonzero(held[row, shard] == EMPTY_SLOT)[0]
    held[row, shard, empty] = expert = held[row, shard, slot]
    with pytest.raises(
        ValueError, match=f"layer {3 + row}: shard {shard} holds expert {expert} twice"
    ):
        made(held, num_experts)


def one_layer(**changes: object) -> PlanEpoch:
    fields = {
        "number": 1,
        "num_experts": 2,
        "layers": (0,),
        "experts": np.array([[[0, 1]]], np.int32),
        "shares": np.ones((1, 1, 2)),
    }
    return PlanEpoch(**(fields | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": (0, 1)}, "2 layers, shards, slots"),
        ({"layers": (2, 2), "experts": np.zeros((2, 1, 1), np.int32)}, "ascending"),
        ({"experts": np.zeros((1, 2), np.int32)}, "got shape"),
        ({"shares": np.ones((1, 1, 1))}, "differ"),
        ({"shares": np.array([[[1.0, -1.0]]])}, "not negative"),
        ({"shares": np.array([[[1.0, np.inf]]])}, "finite"),
        ({"experts": np.array([[[0, 2]]], np.int32)}, "must lie in"),
        ({"experts": np.array([[[1, -2]]], np.int32)}, "must lie in"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(changes: dict[str, object], message: str) -> None:
    assert one_layer().num_shards == 1
    with pytest.raises(ValueError, match=message):
        one_layer(**changes)


def test_slots_of_a_shard_are_its_experts_layer_by_layer() -> None:
    experts = np.array([[[0, 1], [1, EMPTY_SLOT]], [[1, 0], [EMPTY_SLOT, 0]]], np.int32)
    plan = PlanEpoch(1, 2, (2, 5), experts, np.ones(experts.shape))
    assert plan.slots_of(0) == [(2, 0), (2, 1), (5, 1), (5, 0)]
    assert plan.slots_of(1) == [(2, 1), (5, 0)]
