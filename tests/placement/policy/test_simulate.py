"""Replays tell policies apart."""

from __future__ import annotations

import numpy as np
import pytest

from placement.policy.simulate import Decided, Fixed, Nudged, Replanned, simulate
from placement.trace import Trace


@pytest.fixture
def trace() -> Trace:
    rng = np.random.default_rng(0)
    base = rng.lognormal(0, 1, (2, 32))
    counts = []
    for _ in range(6):
        base *= rng.lognormal(0, 0.3, base.shape)
        counts.append(rng.poisson(base * 200))
    T = len(counts)
    return Trace(np.array(counts), np.arange(T) * 30.0, np.full(T, 30.0), ("chat", "code") * 3)


def test_policies_differ_as_they_should(trace):
    speed, slots = np.repeat([1.0, 0.4], 2), np.full(4, 10)
    runs = simulate(
        trace.counts,
        speed,
        {
            "fixed": Fixed(speed, slots),
            "re-planned": Replanned(speed, slots),
            "nudged": Nudged(speed, slots, max_moves_per_layer=2),
            "decided": Decided(speed, slots),
        },
        expert_bytes=7,
    )
    assert runs["fixed"].moves.tolist() == [0] * 5
    assert runs["nudged"].moves.max() <= 2 * 2
    assert runs["nudged"].moves.sum() < runs["re-planned"].moves.sum()
    assert runs["decided"].moves.sum() < runs["re-planned"].moves.sum()
    assert runs["nudged"].balance.mean() >= runs["fixed"].balance.mean()
    np.testing.assert_array_equal(runs["nudged"].bytes, runs["nudged"].moves * 7)
    for run in runs.values():
        assert run.balance.shape == (5,)
        assert (run.balance <= 1 + 1e-9).all()


def test_one_window_is_not_enough(trace):
    with pytest.raises(ValueError, match="windows >= 2"):
        simulate(trace.counts[:1], np.ones(4), {})
