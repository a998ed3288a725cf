"""When a completion would succeed, what is said when it would not, and how far a start is."""

from dataclasses import replace

import pytest

from orchestrator.control.keys import Keys
from orchestrator.control.lifecycle import Kind, Life
from orchestrator.control.state import State
from orchestrator.runtime.progress import is_up, readiness, step_of, unserved
from tests.orchestrator.runtime.states import keys, state

ENGINE = {"engine-0": Kind.ENGINE}
REPLICATED: dict[str, Keys] = {"a-0": keys(0, 1, 2), "b-0": keys(2, 3, 0)}
"""Experts 0 and 2 on both shards, 1 on the first only, 3 on the second only."""


def test_ready_with_shards_and_an_engine() -> None:
    engines = ENGINE | {"engine-1": Kind.ENGINE}
    mesh = state(REPLICATED, {"engine-1": Life.DEAD}, engines)
    assert readiness(mesh) == (True, "1 of 2 engines ready")


def test_before_the_first_plan() -> None:
    assert readiness(State()) == (False, "no plan epoch yet")


@pytest.mark.parametrize(
    ("lives", "missing"),
    [
        ({}, keys()),
        ({"a-0": Life.DEAD}, keys(1)),
        ({"b-0": Life.SUSPECT}, keys(3)),
        ({"b-0": Life.DRAINING}, keys()),
        ({"a-0": Life.DEAD, "b-0": Life.STARTING}, keys(0, 1, 2, 3)),
    ],
)
def test_only_experts_without_any_replica_are_unserved(
    lives: dict[str, Life], missing: Keys
) -> None:
    assert unserved(state(REPLICATED, lives)) == missing


def test_what_a_shard_holds_and_no_epoch_names_is_not_served() -> None:
    mesh = state(REPLICATED)
    epoch = mesh.intent.epoch
    assert epoch is not None
    named = replace(epoch, copies={"a-0": keys(0, 1), "b-0": keys(3)})
    assert unserved(replace(mesh, intent=replace(mesh.intent, epoch=named))) == keys(2)


def test_lost_experts_are_told_with_the_shards_that_held_them() -> None:
    mesh = state(REPLICATED, {"a-0": Life.DEAD}, ENGINE, {"a-0": "killed"})
    assert readiness(mesh) == (
        False,
        "1 experts have no living replica, first: layer 2 expert 1 (shard a-0 is dead: killed)",
    )


def test_replicas_cover_for_a_lost_shard() -> None:
    both = {"a-0": keys(0, 1, 2, 3), "b-0": keys(0, 1, 2, 3)}
    assert readiness(state(both, {"a-0": Life.DEAD}, ENGINE))[0]


def test_a_router_that_the_mode_needs() -> None:
    others = ENGINE | {"router-0": Kind.ROUTER}
    mesh = state(REPLICATED, {"router-0": Life.DEAD}, others, {"router-0": "killed"})
    assert readiness(mesh) == (False, "router router-0 is dead: killed")


def test_no_engine() -> None:
    assert readiness(state(REPLICATED)) == (False, "no engine was started yet")
    loading = state(REPLICATED, {"engine-0": Life.STARTING}, ENGINE, {"engine-0": "its pool's"})
    assert readiness(loading) == (False, "engine engine-0 is starting: its pool's")


def test_the_steps_of_a_start() -> None:
    empty = {"a-0": keys(), "b-0": keys()}
    mesh = state(empty, {"a-0": Life.STARTING, "engine-0": Life.STARTING}, ENGINE, published=False)
    mesh = replace(mesh, intent=replace(mesh.intent, epoch=None))
    assert step_of(mesh) == ("Start expert shards", "1 of 2")
    placed = state(empty, {"engine-0": Life.STARTING}, ENGINE, published=False)
    assert step_of(replace(placed, intent=replace(placed.intent, epoch=None)))[0] == "Place experts"
    assert step_of(state(REPLICATED, {"engine-0": Life.STARTING}, ENGINE))[0] == "Load the engine"
    served = state(REPLICATED, {}, ENGINE)
    assert step_of(served) == ("Serve", "")
    assert is_up(served)
    assert not is_up(state(REPLICATED, {}, ENGINE, published=False))
