"""Splitting tokens over replicas is as good as linear programming, and proves it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from placement.planner import plan_placement, split_tokens


def best_time(experts: np.ndarray, tokens: np.ndarray, speed: np.ndarray) -> float:
    """Slowest device's time by linear programming, for one layer [D, S]."""
    device, slot = np.nonzero(experts >= 0)
    n = device.size
    serve = np.zeros((tokens.size, n + 1))
    serve[experts[device, slot], np.arange(n)] = 1
    limit = np.zeros((speed.size, n + 1))
    limit[device, np.arange(n)] = 1
    limit[:, n] = -speed
    cost = np.zeros(n + 1)
    cost[n] = 1
    return float(linprog(cost, limit, np.zeros(speed.size), serve, tokens).fun)


@settings(max_examples=120, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(1, 30), st.floats(0.05, 0.9))
def test_is_within_a_hundredth_of_a_percent_of_the_optimum(seed, devices, experts, density):
    rng = np.random.default_rng(seed)
    held = rng.random((devices, experts)) < density
    held[rng.integers(devices, size=experts), np.arange(experts)] = True
    placed = np.full((1, devices, experts), -1, np.int32)
    for d in range(devices):
        ids = np.flatnonzero(held[d])
        placed[0, d, : ids.size] = ids
    tokens = np.floor(rng.lognormal(0, 2, (1, experts)) * 20)
    speed = rng.choice([0.2, 0.4, 1.0, 2.5], devices)
    shares = split_tokens(placed, tokens, speed)
    slowest = (shares[0].sum(axis=1) / speed).max()
    best = best_time(placed[0], tokens[0], speed)
    assert slowest <= best * 1.0001 + 1e-9
    assert (shares >= 0).all()
    for e in range(experts):
        assert shares[0][placed[0] == e].sum() == pytest.approx(tokens[0, e])


def test_long_chains_of_replicas_are_levelled():
    # Device d shares expert d with device d + 1; all load sits at one end.
    devices = 40
    placed = np.full((1, devices, 2), -1, np.int32)
    placed[0, 1:, 0] = np.arange(devices - 1)
    placed[0, :-1, 1] = np.arange(devices - 1)
    tokens = np.full((1, devices - 1), 10.0)
    times = split_tokens(placed, tokens, np.ones(devices)).sum(axis=2)
    np.testing.assert_allclose(times, tokens.sum() / devices, rtol=1e-4)


def test_equal_input_gives_equal_output():
    rng = np.random.default_rng(1)
    load = rng.lognormal(0, 1, (3, 32))
    plan = plan_placement(load, np.ones(4), [10] * 4)
    first = split_tokens(plan.experts, load, np.ones(4))
    np.testing.assert_array_equal(first, split_tokens(plan.experts, load, np.ones(4)))
