"""The ratio that is recommended: cheapest of all, monotone, and no other than by its inputs."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from placement.cost_model import DeviceCost
from placement.workload.lengths import geometric, independent, lognormal
from placement.workload.pipeline import Pipeline, flow
from placement.workload.ratio import Choice, Ratio, Wanted, find_ratio
from placement.workload.service import EngineCost, ExpertSide

MIXED = independent(lognormal(64, 0.8), geometric(32))
CHOICE = Choice((4, 16), most_engines=5, least_shards=1, most_shards=8, step_tokens=2048)
SIDE = ExpertSide(8, 64, 8, 768, DeviceCost(1e-4, 4e-5, 5e-6))
ENGINE = EngineCost(2e-3, 1e-4, 3e-5, 1e-7)

engines = st.builds(
    EngineCost, st.floats(1e-3, 2e-2), st.floats(1e-6, 1e-3), st.floats(1e-6, 1e-4), st.just(1e-7)
)
shard_costs = st.builds(
    DeviceCost, st.floats(1e-5, 1e-3), st.floats(1e-6, 1e-4), st.floats(1e-7, 1e-4)
)
one_engine = replace(CHOICE, most_engines=1, batches=(16,), most_shards=16)


def fewest_shards(engine: EngineCost, side: ExpertSide, wanted: Wanted) -> int:
    """One more than may be had where not even those reach it."""
    found = find_ratio(MIXED, engine, side, one_engine, wanted)
    return found.best.flow.shards if found.met else one_engine.most_shards + 1


@settings(deadline=None)
@given(engines, shard_costs, st.floats(10, 2000), st.sampled_from([1.1, 2.0, 10.0]))
def test_costlier_experts_never_ask_for_fewer_shards(
    engine: EngineCost, cost: DeviceCost, tokens_per_s: float, factor: float
) -> None:
    side, wanted = replace(SIDE, cost=cost), Wanted(tokens_per_s)
    costlier = replace(side, cost=cost.scaled(1 / factor))
    assert fewest_shards(engine, costlier, wanted) >= fewest_shards(engine, side, wanted)


@settings(deadline=None)
@given(engines, shard_costs, st.floats(10, 2000), st.sampled_from([1.1, 2.0, 10.0]))
def test_more_load_never_costs_less(
    engine: EngineCost, cost: DeviceCost, tokens_per_s: float, factor: float
) -> None:
    side = replace(SIDE, cost=cost)
    some = find_ratio(MIXED, engine, side, CHOICE, Wanted(tokens_per_s))
    more = find_ratio(MIXED, engine, side, CHOICE, Wanted(tokens_per_s * factor))
    if more.met:
        assert some.met
        assert more.best.price >= some.best.price
    assert fewest_shards(engine, side, Wanted(tokens_per_s * factor)) >= fewest_shards(
        engine, side, Wanted(tokens_per_s)
    )


def numbers(found: Ratio) -> tuple[int, int, int]:
    best = found.best.flow
    return best.engines, best.shards, best.batch


@settings(deadline=None)
@given(shard_costs, st.sampled_from([0.125, 4.0, 64.0]))
def test_the_answer_does_not_depend_on_the_units(cost: DeviceCost, factor: float) -> None:
    """All times and the target by the same power of two; prices by another."""
    side = replace(SIDE, cost=cost)
    slow = EngineCost(
        ENGINE.step_s * factor, ENGINE.row_s * factor, ENGINE.prompt_row_s * factor,
        ENGINE.context_s * factor,
    )  # fmt: skip
    priced = replace(CHOICE, engine_price=2 * factor, shard_price=factor)
    plain = replace(CHOICE, engine_price=2.0, shard_price=1.0)
    one = find_ratio(MIXED, ENGINE, side, plain, Wanted(300.0))
    scaled = replace(side, cost=cost.scaled(1 / factor))
    two = find_ratio(MIXED, slow, scaled, priced, Wanted(300.0 / factor))
    assert numbers(one) == numbers(two)


def test_it_is_the_cheapest_of_all_that_reach_it() -> None:
    choice = replace(CHOICE, engine_price=3.0, shard_price=1.0)
    wanted = Wanted(900.0, 0.08)
    found = find_ratio(MIXED, ENGINE, SIDE, choice, wanted)
    reaching = [
        engines * 3.0 + shards
        for engines in range(1, 6)
        for shards in range(1, 9)
        for batch in choice.batches
        for one in [flow(Pipeline(MIXED, ENGINE, SIDE, engines, shards, batch, 2048))]
        if one.tokens_per_s >= 900.0 and one.step_p95_s <= 0.08
    ]
    assert found.met
    assert found.best.price == min(reaching)
    assert all(other.price >= found.best.price for other in found.others)
    pairs = [(one.flow.engines, one.flow.shards) for one in (found.best, *found.others)]
    assert len(set(pairs)) == len(pairs)
    assert "one shard fewer" in found.reason


def test_dearer_shards_are_taken_less() -> None:
    cheap = find_ratio(MIXED, ENGINE, SIDE, replace(CHOICE, shard_price=0.1), Wanted(1500.0))
    dear = find_ratio(MIXED, ENGINE, SIDE, replace(CHOICE, shard_price=10.0), Wanted(1500.0))
    assert dear.best.flow.shards < cheap.best.flow.shards


def test_what_cannot_be_reached_is_told_with_the_nearest() -> None:
    found = find_ratio(MIXED, ENGINE, SIDE, CHOICE, Wanted(1e6))
    assert not found.met
    assert (found.best.flow.engines, found.best.flow.shards) == (5, 8)
    assert found.reason.startswith("nothing that may be had reaches 1,000,000 tokens/s, ")


def test_one_that_falls_short_when_played_is_passed_over() -> None:
    wanted = Wanted(900.0)
    plain = find_ratio(MIXED, ENGINE, SIDE, CHOICE, wanted)
    first = plain.best.flow

    def play(found: object) -> float:
        return 1.0 if found == first else 901.0

    played = find_ratio(MIXED, ENGINE, SIDE, CHOICE, wanted, play)
    assert played.met
    assert played.best.flow == plain.others[0].flow
    never = find_ratio(MIXED, ENGINE, SIDE, CHOICE, wanted, lambda _: 1.0)
    assert not never.met
    assert "1 reached" in never.reason


def test_experts_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="need 9 shards, at most 8"):
        find_ratio(MIXED, ENGINE, SIDE, replace(CHOICE, least_shards=9), Wanted())
