"""Splitting a batch over the shards: every choice goes to exactly one live replica."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.dispatch.routing_table import routing_table
from actors.dispatch.split import (
    ExpertsUnplaced,
    ShardBatch,
    Split,
)
from actors.wire.bf16 import round_to_bf16
from placement.cost_model import TYPICAL_COST, cost_table
from placement.epoch import EMPTY_SLOT, PlanEpoch
from tests.actors.fakes import epoch


def split_batch(
    plan: PlanEpoch,
    layer: int,
    ids: np.ndarray,
    weights: np.ndarray,
    speeds: Sequence[float] = (),
    down: Sequence[int] = (),
) -> list[ShardBatch]:
    """speeds: of the shards, equal if not given."""
    costs = [TYPICAL_COST.scaled(speed) for speed in speeds or [1.0] * plan.num_shards]
    usable = ~np.isin(np.arange(plan.num_shards), down)
    split = Split()
    split.plan(
        routing_table(plan), layer, usable, cost_table(costs, [1.0] * len(costs)), ids, weights
    )
    shares = split.shares()
    batches = [split.batch(shard) for shard, _, _ in shares]
    assert [(len(b.rows), len(b.experts)) for b in batches] == [share[1:] for share in shares]
    return batches


@st.composite
def plans(draw: st.DrawFn) -> PlanEpoch:
    """One layer over 1-5 shards, every expert on a random non-empty set of them."""
    shards, experts = draw(st.integers(1, 5)), draw(st.integers(1, 12))
    homes = draw(
        st.lists(
            st.sets(st.integers(0, shards - 1), min_size=1), min_size=experts, max_size=experts
        )
    )
    held = [{3: [e for e in range(experts) if d in homes[e]]} for d in range(shards)]
    return epoch(held, num_experts=experts)


@settings(deadline=None)
@given(plan=plans(), data=st.data())
def test_every_choice_reaches_one_replica_once(plan: PlanEpoch, data: st.DataObject) -> None:
    tokens, top_k = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 4))
    ids = np.array(
        data.draw(
            st.lists(
                st.integers(-1, plan.num_experts - 1),
                min_size=tokens * top_k,
                max_size=tokens * top_k,
            )
        ),
        np.int32,
    ).reshape(tokens, top_k)
    weights = np.arange(1, ids.size + 1, dtype=np.float32).reshape(ids.shape)
    speeds = data.draw(st.lists(st.floats(0.1, 4), min_size=5, max_size=5))

    batches = split_batch(plan, 3, ids, weights, speeds[: plan.num_shards])

    got = []
    for batch in batches:
        assert np.all(np.diff(batch.rows) > 0), "a row goes to a shard once, in order"
        assert set(batch.row_index.tolist()) == set(range(len(batch.rows)))
        for index, expert, weight in zip(
            batch.row_index, batch.experts, batch.weights, strict=True
        ):
            assert expert in plan.experts[0, batch.shard]
            got.append((batch.rows[index], expert, weight))
    wanted = [(t, ids[t, k], weights[t, k]) for t, k in np.argwhere(ids >= 0)]
    assert sorted(got) == sorted(wanted)
    assert [b.shard for b in batches] == sorted({b.shard for b in batches})


def test_replicated_expert_is_shared_by_speed() -> None:
    plan = epoch([{0: [0]}, {0: [0]}], num_experts=1)
    ids = np.zeros((400, 1), np.int32)
    fast, slow = split_batch(plan, 0, ids, np.ones((400, 1), np.float32), [3.0, 1.0])
    assert abs(len(fast.rows) - 300) <= 10, "reading weights counts as 8 rows"
    assert len(fast.rows) + len(slow.rows) == 400


def test_replicated_expert_fills_the_idle_shard_first() -> None:
    plan = epoch([{0: [0, 1]}, {0: [1]}], num_experts=2)
    ids = np.array([[0]] * 600 + [[1]] * 1000, np.int32)
    busy, idle = split_batch(plan, 0, ids, np.ones((1600, 1), np.float32))
    assert abs(len(busy.experts) - len(idle.experts)) <= 10, "reading weights counts as 8 rows"


def test_few_rows_of_an_expert_stay_together() -> None:
    """Every weight is read once where batches are small, and the shards get equal parts."""
    plan = epoch([{0: list(range(16))}, {0: list(range(16))}], num_experts=16)
    ids = np.tile(np.arange(16, dtype=np.int32), (4, 1))
    first, second = split_batch(plan, 0, ids, np.ones(ids.shape, np.float32))
    assert len(np.unique(first.experts)) == len(np.unique(second.experts)) == 8
    assert not set(first.experts) & set(second.experts)


def test_lost_shard_leaves_its_experts_unplaced() -> None:
    plan = epoch([{0: [0, 1]}, {0: [1]}], num_experts=2)
    weights = np.ones((2, 1), np.float32)
    (batch,) = split_batch(plan, 0, np.array([[1], [1]], np.int32), weights, down=[0])
    assert batch.shard == 1
    with pytest.raises(ExpertsUnplaced) as caught:
        split_batch(plan, 0, np.array([[0], [1]], np.int32), weights, down=[0])
    assert (caught.value.layer, caught.value.experts) == (0, [0])


def test_expert_beyond_the_plan_is_refused() -> None:
    plan = epoch([{0: [0, 1]}], num_experts=2)
    with pytest.raises(ValueError, match="expert id 7, the plan has 2"):
        split_batch(plan, 0, np.array([[7]], np.int32), np.ones((1, 1), np.float32))


def test_epoch_refuses_what_is_no_plan() -> None:
    with pytest.raises(ValueError, match=r"experts \[1\] have no slot"):
        epoch([{0: [0]}, {0: [0]}], num_experts=2)
    with pytest.raises(ValueError, match="1 slots do not hold 2 experts"):
        epoch([{0: [0]}], num_experts=2)
    with pytest.raises(ValueError, match="layer 0: shard 0 holds expert 0 twice"):
        PlanEpoch(1, 1, (0,), np.zeros((1, 1, 2), np.int32), np.ones((1, 1, 2)))
    with pytest.raises(ValueError, match="must lie in"):
        PlanEpoch(1, 1, (0,), np.full((1, 1, 1), 5, np.int32), np.ones((1, 1, 1)))


def test_epoch_lists_a_shards_slots() -> None:
    plan = epoch([{2: [0, 1], 5: [1, 0]}, {2: [1], 5: []}], num_experts=2)
    assert plan.slots_of(0) == [(2, 0), (2, 1), (5, 1), (5, 0)]
    assert plan.slots_of(1) == [(2, 1)]
    assert plan.experts[1, 1].tolist() == [EMPTY_SLOT, EMPTY_SLOT]


@given(value=st.floats(width=32))
def test_rounding_is_torchs(value: float) -> None:
    single = torch.tensor([value])
    bits = np.uint32(single.view(torch.int32).item() & 0xFFFFFFFF)
    wanted = single.to(torch.bfloat16)
    got = torch.tensor([int(round_to_bf16(bits))]).to(torch.uint16).view(torch.bfloat16)
    assert torch.equal(got, wanted) or (got.isnan().all() and wanted.isnan().all())
