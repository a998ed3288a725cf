"""Which shards are slow, from the reports of dispatchers."""

from actors.dispatch.report import DispatchReport, ShardReport
from orchestrator.runtime.slowness import Slowness


def report(**scales: float) -> DispatchReport:
    shards = tuple(ShardReport(id, 7, scale=scale) for id, scale in scales.items())
    return DispatchReport(shards=shards)


def test_one_that_is_slower_than_the_others_is_slow() -> None:
    assert Slowness().news("engine", report(a=1.1, b=0.9, c=4.4)) == {"a": 1.0, "b": 1.0, "c": 4.0}


def test_a_machine_that_slows_all_of_them_down_slows_none() -> None:
    assert set(Slowness().news("engine", report(a=3.0, b=3.3, c=2.9)).values()) == {1.0}


def test_of_two_the_quicker_one_is_the_usual() -> None:
    assert Slowness().news("engine", report(a=1.01, b=3.03)) == {"a": 1.0, "b": 3.0}


def test_a_shard_that_has_answered_nothing_is_left_out() -> None:
    """Else one that hangs would seem to answer."""
    slowness = Slowness()
    assert slowness.news("engine", report(a=1.0, b=1.2)) == {"b": 1.0}
    assert slowness.news("engine", report(a=1.0, b=1.2)) == {}
    assert slowness.news("engine", report(a=1.0, b=2.4)) == {"b": 2.4}
    assert slowness.news("another", report(a=1.0, b=2.4)) == {"b": 2.4}


def test_shards_that_have_left_are_no_measure() -> None:
    gone = ShardReport("gone", 0, scale=9.0)
    told = DispatchReport(shards=(ShardReport("a", 7, scale=1.5), gone))
    assert Slowness().news("engine", told) == {"a": 1.0}
    assert Slowness().news("engine", DispatchReport(shards=(gone,))) == {}
