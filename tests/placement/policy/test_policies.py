"""What each policy does in one situation, and that it plans with all that it was told."""

from dataclasses import replace

import numpy as np
import pytest

from placement.planner import plan_placement
from placement.policy.decision import Action
from placement.policy.policies import (
    MOVED_LEAVES,
    MOVED_MOST,
    Policy,
    Situation,
    decided,
    fixed,
    nudged,
    replanned,
)
from placement.types import Placement

SPEED, SLOTS = np.ones(4), np.full(4, 8)
DOMAINS = np.array([0, 0, 1, 1])


def load_of(seed: int, experts: int = 16) -> np.ndarray:
    """[2, E] tokens, Zipf by experts in an order of the seed's."""
    in_order = np.tile(np.arange(1, experts + 1), (2, 1))
    ranks = np.random.default_rng(seed).permuted(in_order, axis=1)
    return 1000.0 / ranks


LOAD = load_of(0)
PLAN = plan_placement(LOAD, SPEED, SLOTS)
SEEN = Situation(LOAD, SPEED, SLOTS, PLAN.experts, LOAD, LOAD, nudge_copies=2)


def copies_per_layer(placement: Placement) -> int:
    """Of the layer that loads most."""
    return int(np.bincount(placement.moves[:, 0], minlength=2).max()) if placement.moves.size else 0


def test_one_that_plans_once_keeps_what_there_is() -> None:
    first = fixed(replace(SEEN, current=None, counts=load_of(1)))
    assert (first.action, first.reason) == (Action.REPLAN, "the first plan")
    right = plan_placement(load_of(1), SPEED, SLOTS)
    np.testing.assert_array_equal(first.placement.experts, right.experts)
    kept = fixed(replace(SEEN, counts=load_of(1)))
    assert (kept.action, kept.placement, kept.reason) == (Action.KEEP, None, "planned once")


def test_the_newest_window_is_planned_for_in_full_or_by_a_few_copies() -> None:
    seen = replace(SEEN, counts=load_of(1))
    anew, few = replanned(seen), nudged(seen)
    assert (anew.action, few.action) == (Action.REPLAN, Action.NUDGE)
    assert (anew.reason, few.reason) == ("planned in every window", "nudged in every window")
    assert anew.placement.balancedness == pytest.approx(1.0, abs=0.01)
    assert 0 < copies_per_layer(few.placement) <= 2 < copies_per_layer(anew.placement)


@pytest.mark.parametrize("missing", ["current", "planned_load"])
def test_the_first_plan_is_for_the_load_that_is_expected(missing: str) -> None:
    step = decided(replace(SEEN, **{missing: None}, load=load_of(1), counts=load_of(2)))
    assert (step.action, step.reason) == (Action.REPLAN, "the first plan")
    assert step.placement.balancedness == pytest.approx(1.0, abs=0.01)


def test_a_load_like_the_planned_one_changes_nothing() -> None:
    step = decided(replace(SEEN, counts=load_of(1)))
    assert (step.action, step.placement) == (Action.KEEP, None)
    assert step.reason.endswith("no copy would pay")


def test_a_few_copies_where_some_of_the_load_has_moved() -> None:
    slots = np.full(4, 4)  # without replicas, so that no split evens it out
    current = plan_placement(LOAD, SPEED, slots).experts
    load = 0.6 * LOAD + 0.4 * load_of(1)
    step = decided(replace(SEEN, slots=slots, current=current, load=load, counts=LOAD))
    assert step.action is Action.NUDGE, step.reason
    assert 0 < copies_per_layer(step.placement) <= 2
    assert step.reason == "balancedness 0.777 of 0.982 possible; load moved by 18.0% per layer"


def test_some_copies_where_they_do_as_well_as_a_plan_from_nothing() -> None:
    """Most of the load is elsewhere, but few copies are in the wrong place."""
    load = load_of(3)
    step = decided(replace(SEEN, load=load, counts=LOAD))
    assert step.action is Action.NUDGE, step.reason
    assert "over 25% of the load moved in 100% of the layers; some copies leave" in step.reason
    assert step.placement.balancedness == pytest.approx(1.0, abs=MOVED_LEAVES)
    anew = plan_placement(load, SPEED, SLOTS, current=PLAN.experts)
    assert 5 * len(step.placement.moves) < len(anew.moves)


def test_a_plan_from_nothing_where_some_copies_do_not_do() -> None:
    """Hardly any replica, so that nearly every device holds too much or too little."""
    speed, slots = np.ones(16), np.full(16, 3)
    before, load = load_of(0, experts=32), load_of(1, experts=32)
    current = plan_placement(before, speed, slots).experts
    step = decided(Situation(load, speed, slots, current, before, before))
    assert step.action is Action.REPLAN, step.reason
    assert step.reason.startswith("balancedness")
    assert copies_per_layer(step.placement) > 48 * MOVED_MOST
    assert step.placement.balancedness == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize("policy", [replanned, nudged])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("min_copies", 2),
        ("failure_domains", DOMAINS),
        ("offset", np.array([0.0, 0.0, 0.0, 900.0])),
        ("speed", np.array([1.0, 1.0, 1.0, 0.2])),
        ("slots", np.array([10, 8, 8, 6])),
    ],
)
def test_plans_are_made_with_all_that_is_known(policy: Policy, name: str, value) -> None:
    seen = replace(SEEN, current=PLAN.experts if policy is nudged else None, counts=load_of(3))
    if name == "slots":
        seen = replace(seen, current=None)
    told = replace(seen, **{name: value})
    right = plan_placement(
        told.counts,
        told.speed,
        told.slots,
        current=told.current,
        max_moves_per_layer=2 if policy is nudged else None,
        offset=told.offset,
        min_copies=told.min_copies,
        failure_domains=told.failure_domains,
    )
    np.testing.assert_array_equal(policy(told).placement.experts, right.experts)
    if name != "failure_domains" or policy is replanned:
        without = policy(seen).placement.experts
        assert without.shape != right.experts.shape or (without != right.experts).any()
