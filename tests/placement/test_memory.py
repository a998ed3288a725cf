"""Slots from bytes: never more than fits, spent where copies help most."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from placement.memory import plan_memory
from placement.planner import plan_placement


@settings(max_examples=100, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 4),
    st.integers(1, 16),
    st.integers(1, 6),
    st.integers(1, 2),
)
def test_memory_is_never_exceeded(seed, layers, experts, devices, copies):
    rng = np.random.default_rng(seed)
    copies = min(copies, devices)
    load = rng.lognormal(0, 1, (layers, experts))
    size = rng.integers(1, 5, layers)
    memory = rng.integers(size.sum() * experts * copies // 2, 3 * size.sum() * experts, devices)
    assume(memory.sum() >= copies * size.sum() * experts + devices * size.max())
    plan = plan_memory(load, size, memory, min_copies=copies)
    used = (plan.slots * size[:, None]).sum(axis=0)
    np.testing.assert_array_equal(used + plan.spare_bytes, memory)
    assert (plan.spare_bytes >= 0).all()
    assert (plan.slots <= experts).all()
    np.testing.assert_array_equal(plan.slots.sum(axis=1), experts * copies + plan.redundant)
    placed = plan_placement(load, np.ones(devices), plan.slots, min_copies=copies)
    assert placed.experts.shape[:2] == (layers, devices)


def test_spare_memory_goes_to_the_lumpiest_layer():
    flat, skewed = np.full(16, 100.0), np.array([250.0] * 4 + [50.0] * 12)
    plan = plan_memory(np.stack([flat, skewed]), 10, [100] * 4)
    assert plan.redundant[1] > plan.redundant[0]
    assert plan.redundant.sum() == 40 - 32


def test_a_limit_on_redundant_slots_leaves_memory_free():
    plan = plan_memory(np.ones((2, 8)), 10, [200] * 4, max_redundant_per_layer=3)
    assert plan.redundant.tolist() == [3, 3]
    assert plan.spare_bytes.sum() == 800 - 22 * 10


def test_reports_what_surviving_a_device_would_take():
    plan = plan_memory(np.ones((2, 8)), 10, [100, 100])
    assert plan.survival_bytes == 2 * 2 * 8 * 10 - 200
    assert plan_memory(np.ones((2, 8)), 10, [160, 160]).survival_bytes == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.ones((2, 8)), 10, [70, 70]), "take 160 bytes; the devices have 140, 20 less"),
        (
            (np.ones((1, 2)), 10, [15, 15, 5]),
            "no device that lacks an expert of layer 0",
        ),
        ((np.ones((1, 2)), 1.5, [15]), "expert_bytes must be whole bytes"),
        ((np.ones((1, 2)), 0, [15]), "expert_bytes must be at least 1"),
        ((np.ones((1, 2)), 1, [-15]), "device_bytes must be at least 0"),
    ],
)
def test_bad_input_is_named(arguments, message):
    if message.startswith("no device that"):
        arguments = (np.ones((1, 3)), 10, [15, 15, 5])
    with pytest.raises(ValueError, match=message):
        plan_memory(*arguments)
