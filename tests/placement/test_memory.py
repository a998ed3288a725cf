"""Slots from memory: never more than fits, spent where copies help most."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from placement.memory import share_slots
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
    capacity = rng.integers(layers * experts * copies // 2, 3 * layers * experts, devices)
    assume(capacity.sum() >= copies * layers * experts + devices)
    slots = share_slots(load, capacity, min_copies=copies)
    assert (slots.sum(axis=0) <= capacity).all()
    assert (slots <= experts).all()
    assert (slots.sum(axis=1) >= experts * copies).all()
    # What is left could hold no copy that any layer still lacks.
    full = (slots == experts).all(axis=0)
    assert (full | (slots.sum(axis=0) == capacity)).all()
    placed = plan_placement(load, np.ones(devices), slots, min_copies=copies)
    assert placed.experts.shape[:2] == (layers, devices)


def test_spare_memory_goes_to_the_lumpiest_layer():
    flat, skewed = np.full(16, 100.0), np.array([250.0] * 4 + [50.0] * 12)
    redundant = share_slots(np.stack([flat, skewed]), [10] * 4).sum(axis=1) - 16
    assert redundant[1] > redundant[0]
    assert redundant.sum() == 40 - 32


def test_a_limit_on_redundant_slots_leaves_memory_free():
    slots = share_slots(np.ones((2, 8)), [20] * 4, max_redundant_per_layer=3)
    assert slots.sum(axis=1).tolist() == [8 + 3, 8 + 3]


@pytest.mark.parametrize(
    ("load", "capacity", "message"),
    [
        (np.ones((2, 8)), [7, 7], "each, are 16; the devices hold 14, 2 less"),
        (np.ones((1, 2)), [1.5], "capacity must be whole experts"),
        (np.ones((1, 2)), [-1], "capacity must be at least 0"),
    ],
)
def test_bad_input_is_named(load, capacity, message):
    with pytest.raises(ValueError, match=message):
        share_slots(load, capacity)


def test_memory_on_too_few_devices_is_named():
    with pytest.raises(ValueError, match="no device that lacks an expert of layer 0"):
        share_slots(np.ones((1, 3)), [9, 0], min_copies=2)
