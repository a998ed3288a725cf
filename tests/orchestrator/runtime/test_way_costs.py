"""What dispatchers measured of the ways to shards, as the planner counts on it; what it does with
that is in `tests/devices/test_measured_costs_reach_the_planner.py`."""

from actors.dispatch.report import DispatchReport, ShardReport
from orchestrator.runtime.way_costs import WayCosts
from placement.cost_model import WayCost

HERE, THERE = "here/1", "there/2"


def report(**ways: tuple[float, float]) -> DispatchReport:
    """Shard -> round trip and bytes a second."""
    told = (ShardReport(id, 1, round_trip_s=s, bytes_per_s=rate) for id, (s, rate) in ways.items())
    return DispatchReport(shards=tuple(told))


def test_ways_within_a_node_are_not_counted() -> None:
    links = WayCosts()
    links.learn([(HERE, report(a=(1e-3, 1e9), b=(1e-3, 1e9)))], {"a": HERE, "b": THERE})
    assert links.of("a") is None
    assert links.of("b") == WayCost(1e-3, 1e-9)


def test_the_mean_over_dispatchers_counts() -> None:
    links = WayCosts()
    both = report(a=(2e-3, 1e9))
    links.learn([(HERE, both), (THERE, both)], {"a": HERE})
    assert links.of("a") == WayCost(1e-3, 0.5e-9)


def test_noise_changes_nothing_and_another_way_does() -> None:
    links, nodes = WayCosts(), {"a": THERE}
    links.learn([(HERE, report(a=(1e-3, 1e9)))], nodes)
    first = links.of("a")
    links.learn([(HERE, report(a=(1.4e-3, 0.8e9)))], nodes)
    assert links.of("a") == first
    links.learn([(HERE, report(a=(1e-3, 0.5e9)))], nodes)
    assert links.of("a") == WayCost(1e-3, 2e-9)
    links.learn([(HERE, report(a=(0.6e-3, 0.5e9)))], nodes)
    assert links.of("a") == WayCost(0.6e-3, 2e-9)


def test_what_was_not_measured_is_not_counted() -> None:
    links = WayCosts()
    links.learn([(HERE, report(a=(0.0, 0.0), gone=(1e-3, 1e9)))], {"a": THERE})
    assert links.of("a") is None
    assert links.of("gone") is None
