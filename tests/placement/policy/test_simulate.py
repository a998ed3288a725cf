"""Replays tell policies apart."""

from __future__ import annotations

import numpy as np
import pytest

from placement.policy.decision import Action
from placement.policy.policies import (
    POLICIES,
    Situation,
    Step,
    decided,
    fixed,
    nudged,
    replanned,
)
from placement.policy.simulate import simulate


def test_policies_differ_as_they_should(trace):
    speed, slots = np.repeat([1.0, 0.4], 2), np.full(4, 10)
    runs = simulate(
        trace.counts,
        speed,
        slots,
        {"fixed": fixed, "re-planned": replanned, "nudged": nudged, "decided": decided},
        expert_bytes=7,
    )
    assert runs["fixed"].moves.tolist() == [0] * 5
    assert runs["nudged"].moves.max() <= 2 * 3
    assert runs["nudged"].moves.sum() < runs["re-planned"].moves.sum()
    assert runs["decided"].moves.sum() < runs["re-planned"].moves.sum()
    assert runs["nudged"].balancedness.mean() >= runs["fixed"].balancedness.mean()
    np.testing.assert_array_equal(runs["nudged"].bytes, runs["nudged"].moves * 7)
    for run in runs.values():
        assert run.balancedness.shape == (5,)
        assert (run.balancedness <= 1 + 1e-9).all()


def test_another_policy_is_one_function_and_one_line(trace, monkeypatch):
    """As a new module and its line in `POLICIES` would add it: replayed beside the others."""

    def every_third_window(seen: Situation) -> Step:
        windows.append(seen.counts)
        if seen.current is not None and len(windows) % 3:
            return Step(Action.KEEP, None, "not its turn")
        return replanned(seen)

    windows: list[np.ndarray] = []
    monkeypatch.setitem(POLICIES, "re-plan every third window", every_third_window)
    runs = simulate(trace.counts, np.ones(4), np.full(4, 10))
    assert list(runs) == [
        "plan once",
        "re-plan every window",
        "nudge every window",
        "keep, nudge or re-plan",
        "re-plan every third window",
    ]
    copies = runs["re-plan every third window"].moves
    assert copies.astype(bool).tolist() == [False, False, True, False, False]


def test_one_window_is_not_enough(trace):
    with pytest.raises(ValueError, match="windows >= 2"):
        simulate(trace.counts[:1], np.ones(4), np.full(4, 10))
