"""The planner's promises on any input: everything placed, nothing twice, no slot too many."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from placement.planner import Placement, plan_placement, split_tokens


@st.composite
def problems(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """load [L, E], speed [D], slots [L, D] with room for every expert, however unlike."""
    layers = draw(st.integers(1, 3))
    experts = draw(st.integers(1, 24))
    devices = draw(st.integers(1, 8))
    kind = draw(st.sampled_from(["zero", "one-hot", "equal", "skewed"]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    load = {
        "zero": np.zeros((layers, experts)),
        "one-hot": np.eye(experts)[rng.integers(experts, size=layers)] * 100,
        "equal": np.full((layers, experts), 7.0),
        "skewed": np.floor(rng.lognormal(0, 2, (layers, experts)) * 50),
    }[kind]
    speed = rng.choice([0.1, 0.4, 1.0, 3.0], devices)
    spare = draw(st.integers(0, 2 * experts))
    slots = rng.multinomial(experts + spare, np.ones(devices) / devices, size=layers)
    while (short := experts - np.minimum(slots, experts).sum(axis=1)).max() > 0:
        slots[np.arange(layers), rng.integers(devices, size=layers)] += np.maximum(short, 0)
    return load, speed, slots


def assert_valid(plan: Placement, load: np.ndarray, slots: np.ndarray) -> None:
    layers, experts = load.shape
    for layer in range(layers):
        held = [row[row >= 0] for row in plan.experts[layer]]
        assert set(np.concatenate(held)) == set(range(experts))
        for device, ids in enumerate(held):
            assert len(set(ids)) == len(ids) <= slots[layer, device]
            assert (plan.experts[layer, device, slots[layer, device] :] == -1).all()
    served = np.zeros_like(load)
    layer, device, slot = np.nonzero(plan.experts >= 0)
    np.add.at(served, (layer, plan.experts[layer, device, slot]), plan.shares[plan.experts >= 0])
    np.testing.assert_allclose(served, load, atol=1e-6)
    assert (plan.shares >= 0).all()
    assert plan.balancedness <= plan.bound * (1 + 1e-9)


@settings(max_examples=150, deadline=None)
@given(problems())
def test_places_every_expert_within_slots(problem):
    load, speed, slots = problem
    plan = plan_placement(load, speed, slots)
    assert_valid(plan, load, slots)
    assert len(plan.moves) == (plan.experts >= 0).sum()
    again = plan_placement(load, speed, slots)
    np.testing.assert_array_equal(plan.experts, again.experts)


@settings(max_examples=150, deadline=None)
@given(problems(), st.integers(0, 6), st.randoms(use_true_random=False))
def test_budget_holds_while_devices_come_and_go(problem, budget, random):
    load, speed, slots = problem
    layers, experts = load.shape
    devices = len(speed)
    before = plan_placement(load, speed, slots).experts.copy()
    kept = [d for d in range(devices) if random.random() < 0.7]
    joined = random.randint(0 if kept else 1, 2)
    current = np.full((layers, len(kept) + joined, before.shape[2]), -1, np.int32)
    current[:, : len(kept)] = before[:, kept]
    room = np.full((layers, len(kept) + joined), -(-experts // (len(kept) + joined)))
    room[:, : len(kept)] = np.maximum(room[:, : len(kept)], slots[:, kept] - 1)
    drifted = load[:, ::-1]
    rate = np.concatenate([speed[kept], np.ones(joined)])
    plan = plan_placement(drifted, rate, room, current=current, max_moves_per_layer=budget)
    assert_valid(plan, drifted, np.minimum(room, experts))
    for layer in range(layers):
        # The room that shrank may cost a device its only copy of an expert: that copy must move.
        lost = experts - len(set(current[layer][current[layer] >= 0]))
        cut = sum(
            max(0, int((current[layer, d] >= 0).sum()) - int(room[layer, d]))
            for d in range(len(rate))
        )
        assert (plan.moves[:, 0] == layer).sum() <= budget + lost + cut
    for layer, device, slot, expert in plan.moves:
        assert plan.experts[layer, device, slot] == expert
        assert expert not in current[layer, device]


@settings(max_examples=100, deadline=None)
@given(problems())
def test_split_serves_all_tokens(problem):
    load, speed, slots = problem
    plan = plan_placement(load, speed, slots)
    counts = np.roll(load, 1, axis=1)
    shares = split_tokens(plan.experts, counts, speed)
    assert (shares[plan.experts < 0] == 0).all()
    np.testing.assert_allclose(shares.sum(axis=(1, 2)), counts.sum(axis=1), atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"load": [[1.0, np.nan]]}, r"load\[0, 1\] = nan is not finite"),
        ({"load": [[1.0, -2.0]]}, r"load\[0, 1\] = -2.0 is negative"),
        ({"load": [1.0, 2.0]}, r"load must have shape \[layers, experts\]"),
        ({"speed": [1.0, 0.0]}, r"speed\[1\] = 0.0 must be positive"),
        ({"slots": [1, 0]}, "too little memory: layer 0 has 1 slots on 2 devices for 2 experts"),
        ({"slots": [1, -1]}, r"slots\[0, 1\] = -1 is negative"),
        ({"slots": [1, 1, 1]}, "slots must have shape"),
        ({"slots": [1.5, 1.0]}, "slots must be integers"),
        ({"current": [[[0, 0], [1, -1]]]}, "current: layer 0, device 0 lists expert 0 twice"),
        ({"current": [[[0], [7]]]}, r"current\[0, 1, 0\] = 7 is not in"),
        ({"current": [[[0]]]}, r"current must have shape \[1, 2, slots\]"),
        ({"max_moves_per_layer": -1}, "max_moves_per_layer = -1 is negative"),
        ({"failure_domains": [0]}, r"failure_domains must be integers of shape \[2\]"),
    ],
)
def test_bad_input_is_named(change, message):
    good = {"load": [[1.0, 2.0]], "speed": [1.0, 1.0], "slots": [1, 1]}
    with pytest.raises(ValueError, match=message):
        plan_placement(**{**good, **change})


def test_split_names_a_missing_expert():
    with pytest.raises(ValueError, match="layer 0 holds no copy of expert 1"):
        split_tokens(np.array([[[0], [-1]]]), [[1.0, 2.0]], [1.0, 1.0])
