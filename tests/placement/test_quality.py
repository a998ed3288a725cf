"""The balancedness that plans reach at real sizes, on fixed seeds; the benchmark measures more."""

from __future__ import annotations

import numpy as np
import pytest

from placement.planner import plan_placement, split_tokens


def loads(kind: str, layers: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if kind == "zipf":
        base = rng.permuted(np.tile(1 / np.arange(1.0, 257), (layers, 1)), axis=1)
    else:
        base = rng.lognormal(0, 1, (layers, 256))
    return np.floor(base * rng.lognormal(0, 0.35, base.shape) * 1000) + 1


UNEQUAL = np.repeat([1.0, 0.4], 8)


@pytest.mark.parametrize("kind", ["zipf", "lognormal"])
@pytest.mark.parametrize(
    ("speed", "slots", "least"),
    [
        (np.ones(32), np.full(32, 9), 0.999),
        (np.ones(32), np.repeat([9, 8], 16), 0.995),
        (np.ones(128), np.full(128, 3), 0.999),
        (UNEQUAL, np.full(16, 17), 0.999),
        (UNEQUAL, np.repeat([12, 24], 8), 0.997),
        (np.linspace(0.2, 1, 10), np.arange(22, 42, 2), 0.999),
    ],
    ids=["equal", "few replicas", "128 devices", "unequal", "fast but small", "ten speeds"],
)
def test_planned_balance_meets_the_bound(kind, speed, slots, least):
    plan = plan_placement(loads(kind, 6), speed, slots)
    assert plan.balancedness / plan.bound >= least


def test_speeds_are_used():
    load = loads("lognormal", 4)
    plan = plan_placement(load, UNEQUAL, np.full(16, 17))
    blind = plan_placement(load, np.ones(16), np.full(16, 17))
    # Shares planned for equal devices: the slow half is the bottleneck.
    times = blind.shares.sum(axis=2) / UNEQUAL
    assert load.sum() / UNEQUAL.sum() / times.max(axis=1).sum() < 0.6
    assert plan.balancedness > 0.999


def test_other_load_than_planned_is_still_split_well():
    load = loads("lognormal", 8)
    shaken = load * np.random.default_rng(5).lognormal(0, 0.2, load.shape)
    plan = plan_placement(load, np.ones(16), np.full(16, 17))
    times = split_tokens(plan.experts, shaken, np.ones(16)).sum(axis=2)
    assert shaken.sum() / 16 / times.max(axis=1).sum() >= 0.97


def test_a_throttled_device_needs_no_move():
    load = loads("lognormal", 8)
    plan = plan_placement(load, np.ones(16), np.full(16, 17))
    slower = np.ones(16)
    slower[3] = 0.8
    times = split_tokens(plan.experts, load, slower).sum(axis=2) / slower
    assert load.sum() / slower.sum() / times.max(axis=1).sum() >= 0.97


def test_nudges_follow_drift():
    rng = np.random.default_rng(5)
    load = loads("lognormal", 8)
    plan = plan_placement(load, UNEQUAL, np.full(16, 17))
    load *= rng.lognormal(0, 0.5, load.shape)
    stale = split_tokens(plan.experts, load, UNEQUAL).sum(axis=2) / UNEQUAL
    nudged = plan_placement(
        load, UNEQUAL, np.full(16, 17), current=plan.experts, max_moves_per_layer=3
    )
    assert len(nudged.moves) <= 3 * 8
    assert nudged.balancedness > load.sum() / UNEQUAL.sum() / stale.max(axis=1).sum()
    assert nudged.balancedness >= 0.97


def test_no_move_where_none_pays():
    load = loads("zipf", 4)
    plan = plan_placement(load, np.ones(16), np.full(16, 17))
    again = plan_placement(
        load, np.ones(16), np.full(16, 17), current=plan.experts, max_moves_per_layer=5
    )
    assert len(again.moves) == 0
    np.testing.assert_array_equal(again.experts, plan.experts)


def test_planning_anew_leaves_what_stays_in_its_slot():
    load = loads("zipf", 3)
    plan = plan_placement(load, np.ones(8), np.full(8, 34))
    load[:, :40] *= 1.5
    again = plan_placement(load, np.ones(8), np.full(8, 34), current=plan.experts)
    for layer, device in np.ndindex(3, 8):
        old, new = plan.experts[layer, device], again.experts[layer, device]
        stays = np.intersect1d(old, new)
        assert (old == new).sum() == stays.size


def test_constant_costs_are_balanced_too():
    load = loads("lognormal", 4)
    offset = np.where(np.arange(16) < 8, 0.0, load.sum() / 4 / 40)
    plan = plan_placement(load, np.ones(16), np.full(16, 17), offset=offset)
    times = plan.shares.sum(axis=2) + offset
    assert (load.sum() / 4 + offset.sum()) / 16 * 4 / times.max(axis=1).sum() >= 0.999


def test_a_thousand_devices_are_planned_by_groups():
    rng = np.random.default_rng(0)
    load = rng.lognormal(0, 1, (2, 384)) * 1000
    speed = rng.choice([1.0, 0.5], 600)
    plan = plan_placement(load, speed, np.full(600, 2))
    for layer in range(2):
        assert set(range(384)) <= set(plan.experts[layer].ravel().tolist())
    ordered = np.sort(plan.experts, axis=2)
    assert not ((ordered[:, :, 1:] == ordered[:, :, :-1]) & (ordered[:, :, 1:] >= 0)).any()
    assert plan.balancedness / plan.bound >= 0.98
