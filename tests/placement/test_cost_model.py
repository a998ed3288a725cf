"""Measured kernel times become speeds and constant costs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from placement.cost_model import DeviceCost, cost_table, expected_reads, fit_cost, planner_speed
from placement.planner import plan_placement

CALLS = np.array([(1, 1), (1, 32), (4, 4), (8, 8), (8, 64), (4, 512), (8, 4096)], np.float64)


@settings(deadline=None)
@given(st.floats(0, 1e-2), st.floats(0, 1e-3), st.floats(1e-7, 1e-4))
def test_fit_recovers_exact_costs(call_s, read_s, row_s):
    experts, rows = CALLS.T
    true = DeviceCost(call_s, read_s, row_s)
    cost = fit_cost(experts, rows, [true.seconds(*call) for call in CALLS])
    for call in CALLS:
        assert cost.seconds(*call) == pytest.approx(true.seconds(*call), rel=1e-6)
    # The parts themselves, as far as they are not lost beside the other ones.
    scale = 1e-6 * true.seconds(1, 1)
    assert cost.call_s == pytest.approx(call_s, abs=scale)
    assert cost.read_s == pytest.approx(read_s, abs=scale)
    assert cost.row_s == pytest.approx(row_s, abs=scale)


def test_fit_stands_noise_and_no_part_is_negative():
    rng = np.random.default_rng(0)
    experts, rows = np.tile(CALLS, (20, 1)).T
    true = DeviceCost(50e-6, 20e-6, 1e-6)
    seconds = true.seconds(experts, rows) * rng.normal(1, 0.05, rows.size)
    cost = fit_cost(experts, rows, seconds)
    assert cost.call_s == pytest.approx(true.call_s, rel=0.1)
    assert cost.read_s == pytest.approx(true.read_s, rel=0.1)
    assert cost.row_s == pytest.approx(true.row_s, rel=0.1)
    # Times that grow faster than rows: the line through them starts below zero.
    assert fit_cost([1, 1, 2], [10, 100, 100], [1e-5, 2e-4, 2e-4]).call_s == 0.0


@pytest.mark.parametrize(
    ("experts", "rows", "seconds", "message"),
    [
        ([1, 2, 3], [5, 5, 5], [1.0, 1.1, 1.2], "different experts and, apart from them, rows"),
        ([1, 2, 3], [2, 4, 6], [1.0, 1.1, 1.2], "different experts and, apart from them, rows"),
        ([1, 1, 2], [1, 2, 2], [0.0, 1.0, 1.0], "seconds > 0"),
        ([1, 1], [1, 2], [1.0], "equal length"),
        ([1, 1, 2], [1, 100, 100], [1.0, 0.5, 0.6], "does not grow"),
    ],
)
def test_bad_measurements_are_named(experts, rows, seconds, message):
    with pytest.raises(ValueError, match=message):
        fit_cost(experts, rows, seconds)


def test_a_cost_is_scaled_by_speed():
    assert DeviceCost(4.0, 2.0, 1.0).scaled(0.5) == DeviceCost(8.0, 4.0, 2.0)


def test_reading_counts_as_part_of_a_row_where_every_row_meets_its_own_expert():
    costs = [DeviceCost(0.0, 3e-6, 1e-6), DeviceCost(0.0, 0.0, 1e-6)]
    assert planner_speed(costs)[0].tolist() == [1.0, 1.0]
    assert planner_speed(costs, reads_per_row=1.0)[0].tolist() == [0.25, 1.0]
    assert expected_reads(8, 1) == 1.0
    assert expected_reads(8, 1e6) == pytest.approx(8e-6)


def test_slow_calls_get_fewer_tokens():
    costs = [DeviceCost(1e-3, 0.0, 1e-6), DeviceCost(0.0, 0.0, 1e-6)]
    speed, offset = planner_speed(costs)
    assert speed.tolist() == [1.0, 1.0]
    assert offset == pytest.approx([1000, 0])
    load = np.full((1, 20), 300.0)
    plan = plan_placement(load, speed, [20, 20], offset=offset)
    seconds = [
        cost.seconds(0, tokens)
        for cost, tokens in zip(costs, plan.shares[0].sum(axis=1), strict=True)
    ]
    assert seconds[0] == pytest.approx(seconds[1], rel=1e-3)


def test_costs_go_by_the_weight_and_without_one_are_infinite():
    costs = [DeviceCost(1.0, 2.0, 3.0), DeviceCost(1.0, 2.0, 3.0), DeviceCost(0.0, 0.0, 3.0)]
    table = cost_table(costs, [1.0, 0.5, 0.0])
    np.testing.assert_array_equal(table, [[1, 2, 3], [2, 4, 6], [np.inf, np.inf, np.inf]])
