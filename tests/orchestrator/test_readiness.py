"""When a completion would succeed, and what is said when it would not."""

import pytest

from orchestrator.components import Component
from orchestrator.readiness import readiness, unplaced_experts
from orchestrator.status import ComponentKind, ComponentState
from tests.orchestrator.building import component, epoch

SHARD, ENGINE, ROUTER = ComponentKind.SHARD, ComponentKind.ENGINE, ComponentKind.ROUTER
DEAD, LOADING = ComponentState.DEAD, ComponentState.LOADING

REPLICATED = epoch([[0, 1, 2], [2, 3, 0]])
"""Experts 0 and 2 on both shards, 1 on the first only, 3 on the second only."""


def mesh(first=ComponentState.READY, second=ComponentState.READY, *more: Component):
    return [component("a-0", SHARD, first), component("b-0", SHARD, second), *more]


def test_ready_with_shards_and_an_engine() -> None:
    engines = [component("engine-0", ENGINE), component("engine-1", ENGINE, DEAD, "gone")]
    parts = mesh(ComponentState.READY, ComponentState.READY, *engines)
    assert readiness(parts, REPLICATED, needs_router=False) == (True, "1 of 2 engines ready")


def test_before_the_first_plan() -> None:
    assert readiness([], None, needs_router=False) == (False, "no plan epoch yet")


def test_only_experts_without_any_replica_are_unplaced() -> None:
    assert unplaced_experts(mesh(), REPLICATED) == []
    assert unplaced_experts(mesh(DEAD), REPLICATED) == [(2, 1)]
    assert unplaced_experts(mesh(ComponentState.READY, LOADING), REPLICATED) == [(2, 3)]
    assert unplaced_experts(mesh(DEAD, DEAD), REPLICATED) == [(2, e) for e in range(4)]


def test_lost_experts_are_told_with_the_shards_that_held_them() -> None:
    parts = [component("a-0", SHARD, DEAD, "killed"), *mesh()[1:], component("engine-0", ENGINE)]
    ready, reason = readiness(parts, REPLICATED, needs_router=False)
    assert not ready
    assert reason == (
        "1 experts have no living replica, first: layer 2 expert 1 (shard a-0 is dead: killed)"
    )


def test_replicas_cover_for_a_lost_shard() -> None:
    both = epoch([[0, 1, 2, 3], [0, 1, 2, 3]])
    parts = mesh(DEAD, ComponentState.READY, component("engine-0", ENGINE))
    assert readiness(parts, both, needs_router=False)[0]


@pytest.mark.parametrize(
    ("routers", "reason"),
    [
        ([], "no router was started yet"),
        ([component("router-0", ROUTER, DEAD, "killed")], "router router-0 is dead: killed"),
    ],
)
def test_a_router_that_the_mode_needs(routers: list[Component], reason: str) -> None:
    parts = [*mesh(), component("engine-0", ENGINE), *routers]
    assert readiness(parts, REPLICATED, needs_router=True) == (False, reason)
    assert readiness(parts, REPLICATED, needs_router=False)[0]


def test_no_engine() -> None:
    assert readiness(mesh(), REPLICATED, needs_router=False) == (
        False,
        "no engine was started yet",
    )
    loading = component("engine-0", ENGINE, LOADING, "loading /model")
    assert readiness([*mesh(), loading], REPLICATED, needs_router=False) == (
        False,
        "engine engine-0 is loading: loading /model",
    )


def test_a_suspected_component_counts_as_missing_where_it_is_the_last() -> None:
    suspect = component("b-0", SHARD, ComponentState.SUSPECT, "has not answered for 5 s")
    engine = component("engine-0", ENGINE)
    ready, reason = readiness(
        [component("a-0", SHARD), suspect, engine], REPLICATED, needs_router=False
    )
    assert not ready
    assert "layer 2 expert 3 (shard b-0 is suspect: has not answered for 5 s)" in reason
    everywhere = epoch([[0, 1, 2, 3], [2, 3]])
    assert readiness([component("a-0", SHARD), suspect, engine], everywhere, needs_router=False)[0]

    engine.state, engine.detail = ComponentState.SUSPECT, "has not answered for 5 s"
    assert readiness([*mesh(), engine], REPLICATED, needs_router=False) == (
        False,
        "engine engine-0 is suspect: has not answered for 5 s",
    )
