"""The formulas against the pipeline played call by call, and against what must hold for any."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from placement.cost_model import DeviceCost
from placement.workload.lengths import (
    fixed,
    geometric,
    independent,
    lognormal,
    recorded,
    slot_load,
)
from placement.workload.pipeline import Pipeline, flow, steps_of
from placement.workload.service import EngineCost, ExpertSide, LinkCost, expected_largest
from placement.workload.simulate import shard_seconds, simulated_tokens_per_s

STEP_TOKENS = 4096
seconds = st.floats(1e-6, 1e-2)
costs = st.builds(DeviceCost, seconds, seconds, seconds)
engine_costs = st.builds(EngineCost, st.floats(1e-4, 0.1), seconds, seconds, st.floats(0, 1e-6))
sides = st.builds(
    ExpertSide,
    layers=st.integers(1, 8),
    experts=st.sampled_from([16, 24, 64]),
    top_k=st.integers(1, 8),
    hidden=st.just(64),
    cost=costs,
    links=st.builds(LinkCost, st.floats(0, 1e-3), st.just(1e9), st.just(1e9)),
    balancedness=st.floats(0.5, 1.0),
)
mixed = independent(lognormal(64, 0.8), geometric(32))


def all_experts(cost: DeviceCost, layers: int = 3) -> ExpertSide:
    """Every row goes to every expert, so that nothing about a call is random."""
    return ExpertSide(layers, experts=12, top_k=12, hidden=64, cost=cost)


@given(
    engine_costs, costs, st.integers(1, 4), st.integers(1, 3), st.integers(1, 6), st.integers(1, 50)
)
def test_equal_times_agree_exactly_with_the_pipeline_played(
    engine: EngineCost, cost: DeviceCost, engines: int, shards: int, batch: int, prompt: int
) -> None:
    """One output token each: every step is the same, for every engine."""
    same = independent(fixed(prompt), fixed(1))
    side = all_experts(cost)
    given = Pipeline(same, engine, side, engines, shards, batch, STEP_TOKENS)
    found, played = flow(given), simulated_tokens_per_s(given, steps=30)
    assert found.tokens_per_s == pytest.approx(played, rel=1e-6)


@pytest.mark.parametrize("engines", [1, 2, 4])
@pytest.mark.parametrize("shards", [1, 3])
def test_random_times_agree_within_a_tenth(engines: int, shards: int) -> None:
    side = ExpertSide(8, 64, 8, 768, DeviceCost(1e-4, 4e-5, 5e-6))
    engine = EngineCost(2e-3, 1e-4, 3e-5, 1e-7)
    given = Pipeline(mixed, engine, side, engines, shards, 16, 2048)
    found, played = flow(given), simulated_tokens_per_s(given, steps=400)
    assert found.tokens_per_s == pytest.approx(played, rel=0.1)


@given(engine_costs, sides, st.integers(1, 4), st.integers(1, 8), st.integers(1, 32))
def test_more_of_anything_is_never_slower(
    engine: EngineCost, side: ExpertSide, engines: int, shards: int, batch: int
) -> None:
    def tokens_per_s(*numbers: int) -> float:
        return flow(Pipeline(mixed, engine, side, *numbers, STEP_TOKENS)).tokens_per_s

    assert tokens_per_s(engines + 1, shards, batch) >= tokens_per_s(engines, shards, batch) * (
        1 - 1e-9
    )
    slower = replace(side, cost=side.cost.scaled(0.5))
    given = Pipeline(mixed, engine, slower, engines, shards, batch, STEP_TOKENS)
    assert flow(given).tokens_per_s <= tokens_per_s(engines, shards, batch)


@given(engine_costs, sides, st.integers(1, 4), st.integers(1, 8), st.sampled_from([0.25, 8.0]))
def test_a_clock_that_runs_faster_changes_nothing_else(
    engine: EngineCost, side: ExpertSide, engines: int, shards: int, factor: float
) -> None:
    """A power of two, so that not even a bit of rounding differs."""
    timed = EngineCost(
        engine.step_s * factor, engine.row_s * factor, engine.prompt_row_s * factor,
        engine.context_s * factor,
    )  # fmt: skip
    links = side.links
    slower = LinkCost(
        links.round_trip_s * factor, links.engine_bytes_per_s / factor,
        links.shard_bytes_per_s / factor,
    )  # fmt: skip
    other = replace(side, cost=side.cost.scaled(1 / factor), links=slower)
    one = flow(Pipeline(mixed, engine, side, engines, shards, 8, STEP_TOKENS))
    two = flow(Pipeline(mixed, timed, other, engines, shards, 8, STEP_TOKENS))
    assert two.tokens_per_s * factor == pytest.approx(one.tokens_per_s)
    assert (two.limit, two.shard_busy) == (one.limit, pytest.approx(one.shard_busy))


@given(engine_costs, sides, st.integers(1, 6), st.integers(1, 8))
def test_nothing_is_busier_than_all_the_time(
    engine: EngineCost, side: ExpertSide, engines: int, shards: int
) -> None:
    found = flow(Pipeline(mixed, engine, side, engines, shards, 8, STEP_TOKENS))
    for busy in (found.engine_busy, found.shard_busy, found.link_busy):
        assert 0 <= busy <= 1 + 1e-9
    assert found.step_p95_s >= found.step_s * 0.5


def test_a_slot_is_seen_in_long_requests_more_often() -> None:
    """Of outputs 1 and 9 a step sees the long one in 9 of 10, so contexts are longer than those
    of a request of the mean length."""
    slot = slot_load(recorded([10, 10], [1, 9]), chunk=100)
    assert slot.steps == 5
    assert slot.output == 5
    assert slot.prompt_chance == pytest.approx(1 / 5)
    assert slot.context == pytest.approx(sum(10 + j for j in range(1, 9)) / 8)


def test_prompts_longer_than_a_step_take_several() -> None:
    slot = slot_load(recorded([250], [4]), chunk=100)
    assert slot.prompt_steps == 3
    assert slot.steps == 3 + 3
    assert slot.prompt_rows == pytest.approx(250 / 3)


def test_kinds_of_steps_have_the_rows_of_the_requests() -> None:
    slot = slot_load(mixed, chunk=4000)
    steps = steps_of(slot, 16)
    assert sum(step.chance for step in steps) == pytest.approx(1)
    prompts = sum(step.chance * step.prompt_rows for step in steps)
    assert prompts == pytest.approx(16 * slot.prompt_rows * slot.prompt_chance, rel=1e-3)


@pytest.mark.parametrize(("mean", "drawn"), [(64, lognormal(64, 0.8)), (32, geometric(32))])
def test_quantiles_keep_the_mean(mean: float, drawn: np.ndarray) -> None:
    assert drawn.mean() == pytest.approx(mean, rel=0.02)


def test_the_largest_of_normal_numbers() -> None:
    assert expected_largest(1) == 0
    assert expected_largest(2) == pytest.approx(1 / np.sqrt(np.pi), abs=1e-3)
    assert expected_largest(8) == pytest.approx(1.4236, abs=1e-3)


@pytest.mark.parametrize("shards", [1, 2, 4, 8])
@pytest.mark.parametrize("rows", [4, 16, 256])
def test_a_call_takes_what_drawn_ones_take(rows: int, shards: int) -> None:
    side = ExpertSide(1, 64, 8, 64, DeviceCost(1e-4, 4e-5, 5e-6))
    rng = np.random.default_rng(7)
    drawn = np.array([shard_seconds(side, rows, shards, rng) for _ in range(2000)])
    call = side.call(rows, shards)
    assert call.mean_s == pytest.approx(drawn.mean(), rel=0.02)
    assert call.slowest_s == pytest.approx(drawn.max(axis=1).mean(), rel=0.05)


def test_a_batch_that_fills_a_step_is_refused() -> None:
    side = all_experts(DeviceCost(1e-4, 1e-5, 1e-6))
    with pytest.raises(ValueError, match="no room for prompts beside 64"):
        flow(Pipeline(mixed, EngineCost(1e-3, 0, 0, 0), side, 1, 1, 64, 64))
