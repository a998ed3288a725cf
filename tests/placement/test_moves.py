"""Moves from one placement to the next are safe at every moment, in memory and in replicas."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from placement.moves import CHECKPOINT, MoveSchedule, schedule_moves
from placement.planner import plan_placement

LINKS = {"expert_bytes": 10, "link_bytes_per_s": 100.0, "storage_bytes_per_s": 50.0}


def replay(current: np.ndarray, schedule: MoveSchedule, staging: int) -> np.ndarray:
    """Carries the schedule out, checking its promises; returns what is loaded in the end."""
    live = current.copy()
    experts = set(zip(*np.nonzero(live >= 0)[:1], live[live >= 0], strict=True))
    for batch in schedule.batches:
        staged = np.zeros(live.shape[1], int)
        for move in batch.moves:
            at = (move.layer, move.device, move.slot)
            assert live[at] == move.replaces
            if move.staged:
                staged[move.device] += LINKS["expert_bytes"]
            elif move.replaces >= 0:
                live[at] = -1
        assert (staged <= staging).all()
        # While copies load, everybody who was served still is.
        loaded = set(zip(*np.nonzero(live >= 0)[:1], live[live >= 0], strict=True))
        assert experts <= loaded
        for move in batch.moves:
            if move.source != CHECKPOINT:
                assert (live[move.layer, move.source] == move.expert).any()
        for move in batch.moves:
            live[move.layer, move.device, move.slot] = move.expert
        loaded = set(zip(*np.nonzero(live >= 0)[:1], live[live >= 0], strict=True))
        assert experts <= loaded
        experts = loaded
    for layer, device, slot in schedule.drops:
        live[layer, device, slot] = -1
    return live


@settings(max_examples=120, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 6), st.integers(1, 16), st.integers(0, 8))
def test_never_loses_a_replica_nor_overfills(seed, devices, experts, spare):
    rng = np.random.default_rng(seed)
    slots = np.full(devices, -(-(experts + spare) // devices))
    speed = rng.choice([0.4, 1.0], devices)
    old = plan_placement(rng.lognormal(0, 1, (2, experts)), speed, slots).experts
    new = plan_placement(rng.lognormal(0, 1, (2, experts)), speed, slots).experts
    limit = float(rng.choice([10, 40, np.inf]))
    schedule = schedule_moves(old, new, staging_bytes=10, max_batch_bytes=limit, **LINKS)
    end = replay(old, schedule, staging=10)
    np.testing.assert_array_equal(np.sort(end, axis=2), np.sort(new, axis=2))
    wanted = sum(
        len(set(new[at][new[at] >= 0]) - set(old[at])) for at in np.ndindex(*new.shape[:2])
    )
    assert sum(len(batch.moves) for batch in schedule.batches) == wanted
    assert schedule.bytes == wanted * 10


def test_two_experts_swap_through_staging():
    old, new = np.array([[[0], [1]]]), np.array([[[1], [0]]])
    schedule = schedule_moves(old, new, staging_bytes=10, **LINKS)
    assert [len(batch.moves) for batch in schedule.batches] == [2]
    assert all(move.staged for move in schedule.batches[0].moves)
    with pytest.raises(ValueError, match="device 0 must load expert 1 before"):
        schedule_moves(old, new, **LINKS)


def test_an_empty_slot_needs_no_staging():
    old, new = np.array([[[0, -1], [1, -1]]]), np.array([[[1, -1], [0, -1]]])
    schedule = schedule_moves(old, new, **LINKS)
    np.testing.assert_array_equal(
        np.sort(replay(old, schedule, staging=0), axis=2), np.sort(new, axis=2)
    )


def test_duration_counts_the_busiest_link():
    # Expert 0 goes from device 0 to three others: one sender, 3 x 10 bytes at 100 bytes / s.
    old = np.array([[[0], [-1], [-1], [-1]]])
    new = np.array([[[0], [0], [0], [0]]])
    schedule = schedule_moves(old, new, **LINKS)
    assert schedule.duration_s == pytest.approx(0.3)
    slower = schedule_moves(old, new, budget_bytes_per_s=50.0, **LINKS)
    assert slower.duration_s == pytest.approx(0.6)
    split = schedule_moves(old, new, max_batch_bytes=10, **LINKS)
    assert len(split.batches) == 3
    # With a second holder in between, later batches may share the sending.
    assert {m.source for b in split.batches for m in b.moves} != {CHECKPOINT}


def test_senders_share_the_work():
    old = np.array([[[0], [0], [-1], [-1]]])
    new = np.array([[[0], [0], [0], [0]]])
    moves = schedule_moves(old, new, **LINKS).batches[0].moves
    assert {move.source for move in moves} == {0, 1}


def test_lost_experts_come_from_storage():
    old, new = np.array([[[-1], [-1]]]), np.array([[[0], [0]]])
    schedule = schedule_moves(old, new, **LINKS)
    assert {move.source for move in schedule.batches[0].moves} == {CHECKPOINT}
    assert schedule.duration_s == pytest.approx(20 / 50)


def test_nothing_to_do_takes_no_time():
    old = np.array([[[0, 1], [1, -1]]])
    schedule = schedule_moves(old, old[:, :, ::-1], **LINKS)
    assert schedule.batches == ()
    assert schedule.drops == ()
    assert schedule.duration_s == 0


def test_replicas_given_up_are_dropped():
    old, new = np.array([[[0, 1], [1, -1]]]), np.array([[[0, -1], [1, -1]]])
    assert schedule_moves(old, new, **LINKS).drops == ((0, 0, 1),)


def test_losing_an_expert_for_good_is_an_error():
    with pytest.raises(ValueError, match="target: layer 0 holds no copy of expert 1"):
        schedule_moves(np.array([[[0], [1]]]), np.array([[[0], [0]]]), **LINKS)
