"""Figures that follow from counts."""

import numpy as np
import pytest

from orchestrator.telemetry.snapshot import (
    Totals,
    Window,
    advance,
    balancedness,
    expert_peak,
    hottest,
    overall_balancedness,
    replica_histogram,
)


def counts(*rows):
    return np.array(rows, np.int64)


def test_totals_grow_by_what_shards_add():
    first, _ = advance(Totals(), (3,), {"a": counts([5, 0]), "b": counts([0, 2])}, 1.0)
    second, window = advance(first, (3,), {"a": counts([6, 0]), "b": counts([0, 9])}, 2.0)
    assert second.counts.tolist() == [[6, 9]]
    assert window.counts.tolist() == [[1, 7]]
    assert dict(zip(window.shards, window.by_shard.tolist(), strict=True)) == {"a": [1], "b": [7]}


def test_a_shard_that_starts_anew_takes_nothing_away():
    first, _ = advance(Totals(), (0,), {"a": counts([50, 3])}, 1.0)
    second, window = advance(first, (0,), {"a": counts([4, 3])}, 1.0)
    assert (second.counts.tolist(), window.counts.tolist()) == ([[54, 6]], [[4, 3]])


def test_a_silent_shard_is_counted_when_it_answers_again():
    first, _ = advance(Totals(), (0,), {"a": counts([5]), "b": counts([1])}, 1.0)
    silent, window = advance(first, (0,), {"b": counts([2])}, 1.0)
    assert (silent.counts.tolist(), window.counts.tolist()) == ([[7]], [[1]])
    again, window = advance(silent, (0,), {"a": counts([9]), "b": counts([2])}, 1.0)
    assert (again.counts.tolist(), window.counts.tolist()) == ([[11]], [[4]])


def test_balancedness_counts_time_not_load():
    window = Window(counts([8, 4], [6, 6]), ("fast", "slow"), counts([8, 6], [4, 6]), 1.0)
    assert balancedness(window, {"fast": 2.0, "slow": 1.0}) == pytest.approx([1.0, 4 / 6])
    assert balancedness(window, {}) == pytest.approx([0.75, 1.0])
    assert overall_balancedness(window, {}) == pytest.approx(12 / 14)


def test_without_load_nothing_is_claimed():
    window = Window(counts([0, 0]), ("a",), counts([0]), 1.0)
    assert np.isnan(balancedness(window, {})).all()
    assert np.isnan(overall_balancedness(window, {}))
    assert np.isnan(expert_peak(window.counts)).all()
    assert hottest(window.counts, (0,), 5) == []


def test_the_hottest_experts_by_share_of_their_layer():
    found = hottest(counts([90, 10, 0], [1, 1, 2]), (4, 9), 3)
    assert [(e.layer, e.expert, e.share) for e in found] == [(4, 0, 0.9), (9, 2, 0.5), (9, 0, 0.25)]
    assert expert_peak(counts([90, 10, 0])) == pytest.approx([2.7])


def test_replicas_are_counted_up_to_four_and_more():
    assert replica_histogram(np.array([[0, 1, 1], [4, 7, 2]], np.int32)) == [1, 2, 1, 0, 2]
