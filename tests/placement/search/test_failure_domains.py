"""Failure domains and survival of a lost device."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from placement.planner import plan_placement


def hottest_share_a_domain(plan, domains) -> int:
    """Experts whose two hottest replicas sit in one domain."""
    found = 0
    for experts, shares in zip(plan.experts, plan.shares, strict=True):
        for e in range(experts.max() + 1):
            devices, slots = np.nonzero(experts == e)
            if devices.size > 1:
                first, second = devices[np.argsort(-shares[devices, slots])[:2]]
                found += int(domains[first] == domains[second])
    return found


@pytest.mark.parametrize("speed", [np.ones(16), np.repeat([1.0, 0.4], 8)], ids=["equal", "unequal"])
def test_hottest_replicas_are_apart(speed):
    load = np.random.default_rng(0).lognormal(0, 1, (8, 128)) * 1000
    domains = np.arange(16) // 4
    plan = plan_placement(load, speed, [9] * 16, failure_domains=domains)
    assert hottest_share_a_domain(plan, domains) == 0
    assert plan.balancedness >= 0.99
    blind = plan_placement(load, speed, [9] * 16)
    assert hottest_share_a_domain(blind, domains) > 0


def test_domains_keep_to_the_move_budget():
    load = np.random.default_rng(0).lognormal(0, 1, (4, 64)) * 1000
    domains = np.arange(8) // 2
    before = plan_placement(load, np.ones(8), [9] * 8)
    after = plan_placement(
        load,
        np.ones(8),
        [9] * 8,
        current=before.experts,
        max_moves_per_layer=2,
        failure_domains=domains,
    )
    assert np.bincount(after.moves[:, 0], minlength=4).max() <= 2


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 7), st.integers(1, 20), st.integers(0, 6))
def test_two_copies_survive_any_one_device(seed, devices, experts, spare):
    rng = np.random.default_rng(seed)
    load = rng.lognormal(0, 1, (2, experts)) * 100
    slots = rng.multinomial(2 * experts + spare, np.ones(devices) / devices)
    while np.minimum(slots, experts).sum() < 2 * experts:
        slots[np.argmin(slots)] += 1
    speed = rng.choice([0.4, 1.0], devices)
    plan = plan_placement(load, speed, slots, min_copies=2)
    for lost in range(devices):
        left = np.delete(plan.experts, lost, axis=1)
        for layer in left:
            assert set(range(experts)) <= set(layer.ravel().tolist())
    nudged = plan_placement(
        load[:, ::-1], speed, slots, current=plan.experts, max_moves_per_layer=3, min_copies=2
    )
    for layer in nudged.experts:
        copies = np.bincount(layer[layer >= 0], minlength=experts)
        assert copies.min() >= 2


def test_too_few_slots_for_two_copies_are_named():
    with pytest.raises(ValueError, match="3 slots on 2 devices for 2 experts in 2 copies each"):
        plan_placement([[1.0, 2.0]], [1.0, 1.0], [2, 1], min_copies=2)


def in_one_domain(experts, domains) -> int:
    """Experts of all layers with several copies, all of them in one domain."""
    found = 0
    for layer in experts:
        for e in range(layer.max() + 1):
            devices = np.unique(np.nonzero(layer == e)[0])
            found += int(devices.size > 1 and np.unique(domains[devices]).size == 1)
    return found


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 5), st.integers(1, 4), st.integers(0, 5))
def test_two_copies_survive_any_one_domain_where_the_room_allows(seed, count, each, spare):
    """No domain has room for more than one copy of every expert, so two domains can hold each."""
    rng = np.random.default_rng(seed)
    experts = int(rng.integers(each, 24))
    domains = rng.permutation(np.repeat(np.arange(count), each))
    slots = np.full(count * each, experts // each)
    while slots.sum() > max(2 * experts + spare, count * each):
        slots[rng.choice(np.flatnonzero(slots > 1))] -= 1
    if slots.sum() < 2 * experts:
        return
    load = rng.lognormal(0, 1, (2, experts)) * 100
    speed = rng.choice([0.4, 1.0], count * each)
    plan = plan_placement(load, speed, slots, min_copies=2, failure_domains=domains)
    assert in_one_domain(plan.experts, domains) == 0
