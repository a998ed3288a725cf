"""A node whose cable is pulled: its processes live, and nobody reaches them."""

from dataclasses import replace

import pytest

from orchestrator.control.keys import NO_KEYS, Keys
from orchestrator.control.lifecycle import Life
from orchestrator.control.settings import Settings
from tests.sim.mesh import Shape, SimMesh
from tests.sim.test_simulation import started, unserved

NODE = "node-1"
SHAPE = Shape(shards=9, nodes=3, experts=8, capacity=3)
SETTINGS = Settings(misses_to_suspect=5, suspect_limit_s=10.0, most_redundant=0)
SUSPECTED_S = 7.0
"""Within which a whole node is suspected: clients count for 5 s, and 5 probes are missed."""


def cut(mesh: SimMesh) -> tuple[list[str], Keys]:
    """Cut the node off; (what is on it, keys that are only there)."""
    held = {p.place: p.holdings for p in mesh.all_processes()}
    on_it = sorted(p.place for p in mesh.all_processes() if p.node == NODE)
    elsewhere = NO_KEYS.union(*(keys for id, keys in held.items() if id not in on_it))
    mesh.cut_node(NODE)
    return on_it, NO_KEYS.union(*(held[id] for id in on_it)) - elsewhere


def lives(mesh: SimMesh, ids: list[str]) -> set[Life]:
    return {mesh.state.facts.components[id].life for id in ids}


def generations(mesh: SimMesh, ids: list[str]) -> set[int]:
    return {mesh.state.intent.places[id].generation for id in ids}


def test_experts_that_were_only_there_are_loaded_elsewhere_as_soon_as_it_is_suspected() -> None:
    mesh = started(SHAPE, settings=SETTINGS)
    epoch = mesh.state.intent.epoch.id.number
    on_it, alone = cut(mesh)
    assert len(on_it) >= 3
    assert alone
    mesh.clock.run(mesh.clock.now_s + SUSPECTED_S)
    assert lives(mesh, on_it) == {Life.SUSPECT}
    assert unserved(mesh) == 0
    assert mesh.state.facts.problems[f"node/{NODE}"].startswith(
        f"node {NODE} is lost: {', '.join(on_it)} are silent at once"
    )
    # One decision for all of them: their weights, then the copies.
    assert mesh.state.intent.epoch.id.number == epoch + 2


def test_nobody_waits_for_a_lost_node_to_confirm_the_end_of_its_processes() -> None:
    mesh = started(SHAPE, settings=SETTINGS)
    on_it, _ = cut(mesh)
    mesh.nodes = dict.fromkeys(on_it, "node-2")  # where their successors start
    mesh.clock.run(mesh.clock.now_s + SUSPECTED_S + SETTINGS.suspect_limit_s)
    assert generations(mesh, on_it) == {2}
    assert {stray.id for stray in mesh.state.intent.strays} == set(on_it)
    mesh.network.cut.clear()
    mesh.clock.run(mesh.clock.now_s + 60.0)
    assert not mesh.state.intent.strays
    assert {p.node for p in mesh.all_processes() if p.place in on_it} == {"node-2"}
    assert f"node/{NODE}" not in mesh.state.facts.problems
    assert unserved(mesh) == 0


def test_a_node_that_is_back_in_time_goes_on_as_it_was() -> None:
    mesh = started(SHAPE, settings=SETTINGS)
    planned = mesh.state.intent.planned
    on_it, _ = cut(mesh)
    mesh.clock.run(mesh.clock.now_s + SUSPECTED_S + 2.0)
    mesh.network.cut.clear()
    mesh.clock.run(mesh.clock.now_s + 30.0)
    assert lives(mesh, on_it) == {Life.READY}
    assert generations(mesh, on_it) == {1}
    assert mesh.state.intent.epoch.copies == planned
    assert mesh.state.intent.epoch.weights == {}
    assert not mesh.state.facts.problems


@pytest.mark.parametrize("alone", ["the controller", "one shard"])
def test_silence_that_is_not_a_nodes_loses_no_node(alone: str) -> None:
    shape = SHAPE if alone == "the controller" else replace(SHAPE, nodes=10)
    mesh = started(shape, settings=SETTINGS)
    nodes = {process.node for process in mesh.all_processes()}
    for node in nodes if alone == "the controller" else {"node-2"}:
        mesh.cut_node(node)
    mesh.clock.run(mesh.clock.now_s + SUSPECTED_S + 1.0)
    suspects = {c.life is Life.SUSPECT for c in mesh.state.facts.components.values()}
    assert suspects == ({True} if alone == "the controller" else {True, False})
    assert not any(subject.startswith("node/") for subject in mesh.state.facts.problems)
    assert mesh.state.intent.transaction is None
