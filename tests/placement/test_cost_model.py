"""Measured kernel times become speeds and constant costs; hash tables become load."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from placement.cost_model import DeviceCost, fit_cost, planner_speed
from placement.hash_layers import hash_routed_load
from placement.planner import plan_placement


@settings(deadline=None)
@given(st.floats(0, 1e-2), st.floats(1e-8, 1e-4))
def test_fit_recovers_exact_costs(call_s, token_s):
    tokens = np.array([1.0, 16, 256, 4096])
    cost = fit_cost(tokens, call_s + token_s * tokens)
    assert cost.call_s == pytest.approx(call_s, rel=1e-4, abs=1e-4 * token_s)
    assert cost.token_s == pytest.approx(token_s, rel=1e-4)


def test_fit_stands_noise_and_never_has_a_negative_constant():
    rng = np.random.default_rng(0)
    tokens = np.tile([1.0, 8, 64, 512], 20)
    cost = fit_cost(tokens, (50e-6 + 1e-6 * tokens) * rng.normal(1, 0.05, tokens.size))
    assert cost.call_s == pytest.approx(50e-6, rel=0.1)
    assert cost.token_s == pytest.approx(1e-6, rel=0.1)
    assert fit_cost([10, 100], [1e-5, 2e-4]).call_s == 0.0


@pytest.mark.parametrize(
    ("tokens", "seconds", "message"),
    [
        ([5, 5], [1.0, 1.1], "two different token counts"),
        ([1, 2], [0.0, 1.0], "seconds > 0"),
        ([1, 100], [1.0, 0.5], "does not grow"),
    ],
)
def test_bad_measurements_are_named(tokens, seconds, message):
    with pytest.raises(ValueError, match=message):
        fit_cost(tokens, seconds)


def test_slow_calls_get_fewer_tokens():
    costs = [DeviceCost(1e-3, 1e-6), DeviceCost(0.0, 1e-6)]
    speed, offset = planner_speed(costs)
    assert speed.tolist() == [1.0, 1.0]
    assert offset == pytest.approx([1000, 0])
    load = np.full((1, 20), 300.0)
    plan = plan_placement(load, speed, [20, 20], offset=offset)
    seconds = [
        cost.seconds(tokens) for cost, tokens in zip(costs, plan.shares[0].sum(axis=1), strict=True)
    ]
    assert seconds[0] == pytest.approx(seconds[1], rel=1e-3)


def test_hash_layers_count_their_table():
    table = np.array([[0, 1], [1, 2], [3, 3]])
    load = hash_routed_load([10, 1, 2], table, 5)
    assert load.tolist() == [10, 11, 1, 4, 0]


@pytest.mark.parametrize(
    ("counts", "table", "message"),
    [
        ([1, 2], [[0], [1], [2]], "must agree"),
        ([1, -2], [[0], [1]], ">= 0"),
        ([1, 2], [[0], [9]], "outside 0 .. 3"),
    ],
)
def test_bad_tables_are_named(counts, table, message):
    with pytest.raises(ValueError, match=message):
        hash_routed_load(counts, table, 4)
