"""A node whose cable is pulled: its processes live, and nobody reaches them."""

from dataclasses import replace

import pytest

from orchestrator.control.events import DispatcherSaid, Served
from orchestrator.control.keys import NO_KEYS, Keys
from orchestrator.control.lifecycle import Life
from orchestrator.control.settings import Settings
from tests.sim.mesh import Shape, SimMesh
from tests.sim.test_simulation import started, unserved

NODE = "node-1"
SHAPE = Shape(shards=9, nodes=3, experts=8, capacity=3)
SETTINGS = Settings(misses_to_suspect=5, suspect_limit_s=10.0, most_redundant=0)
SERVED_S = 5.0
"""Within which what was only on a lost node is served again: at most 1 s until the next probe,
2.5 s until the third is missed, 3 s since the last answer to a client, and the load."""
SUSPECTED_S = 7.0
"""Within which any silent component is suspected."""


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


def lost(mesh: SimMesh) -> list[str]:
    return [subject for subject in mesh.state.facts.problems if subject.startswith("node/")]


@pytest.mark.parametrize("seed", range(10))
def test_experts_that_were_only_there_are_loaded_elsewhere_within_five_seconds(seed: int) -> None:
    mesh = started(SHAPE, seed, SETTINGS)
    mesh.clock.run(mesh.clock.now_s + seed / 10)  # in every phase between two probes
    epoch = mesh.state.intent.epoch.id.number
    on_it, alone = cut(mesh)
    assert len(on_it) >= 3
    assert alone
    mesh.clock.run(mesh.clock.now_s + SERVED_S)
    assert lives(mesh, on_it) == {Life.SUSPECT}
    assert generations(mesh, on_it) == {1}
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
    mesh.clock.run(mesh.clock.now_s + SERVED_S + SETTINGS.suspect_limit_s)
    assert generations(mesh, on_it) == {2}
    assert {stray.id for stray in mesh.state.intent.strays} == set(on_it)
    mesh.network.cut.clear()
    mesh.clock.run(mesh.clock.now_s + 60.0)
    assert not mesh.state.intent.strays
    assert {p.node for p in mesh.all_processes() if p.place in on_it} == {"node-2"}
    assert not lost(mesh)
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


def test_a_report_of_answers_from_before_does_not_keep_a_node() -> None:
    """Dispatchers report every two seconds, what came before the cable was cut, too."""
    mesh = started(SHAPE, settings=SETTINGS)
    on_it, _ = cut(mesh)
    cut_s = mesh.clock.now_s
    shards = [id for id in on_it if id.startswith("cpu")]
    mesh.clock.run(cut_s + 2.0)
    served = {id: Served(quiet_s=2.0) for id in shards}
    mesh.tell(lambda now_s: DispatcherSaid(now_s, "engine-0", None, served))
    mesh.clock.run(cut_s + SERVED_S)
    assert {mesh.state.facts.components[id].answered_s <= cut_s for id in shards} == {True}
    assert unserved(mesh) == 0


@pytest.mark.parametrize("what", ["one process", "a node"])
def test_a_pause_of_two_seconds_makes_nobody_a_suspect(what: str) -> None:
    """Garbage collection, or more work than cores."""
    mesh = started(SHAPE, settings=SETTINGS)
    for _ in range(30):
        there = [p for p in mesh.all_processes() if p.node == NODE]
        for process in [mesh.random.choice(there)] if what == "one process" else there:
            process.hung = True
            mesh.clock.after(2.0, process.wake)
        mesh.clock.run(mesh.clock.now_s + 3.0 + mesh.random.random())
    assert not any("suspect" in line or "is lost" in line for line in mesh.trace)
    assert mesh.state.facts.lost_nodes == frozenset()


def test_one_silent_shard_is_no_lost_node() -> None:
    mesh = started(replace(SHAPE, nodes=10), settings=SETTINGS)
    mesh.cut_node("node-2")
    mesh.clock.run(mesh.clock.now_s + SUSPECTED_S + 1.0)
    suspects = {c.life is Life.SUSPECT for c in mesh.state.facts.components.values()}
    assert suspects == {True, False}
    assert not lost(mesh)
    assert mesh.state.intent.transaction is None


@pytest.mark.parametrize("beside", ["", "node-0"])
def test_a_controller_that_is_cut_off_waits_until_somebody_answers(beside: str) -> None:
    """beside: the node it shares with shards and the engine; empty: it is on one of its own."""
    mesh = started(SHAPE, settings=replace(SETTINGS, controller_node=beside))
    planned = mesh.state.intent.planned
    before = len(mesh.trace)
    for node in {"node-0", "node-1", "node-2"} - {beside}:
        mesh.cut_node(node)
    mesh.clock.run(mesh.clock.now_s + 40.0)
    ids = list(mesh.state.intent.places)
    assert generations(mesh, ids) == {1}
    assert mesh.state.facts.problems["nodes"].startswith("nothing on any other node answers")
    assert not lost(mesh)
    for pair in sorted(mesh.network.cut, key=sorted):  # they come back one after the other
        mesh.network.cut.discard(pair)
        mesh.clock.run(mesh.clock.now_s + 0.05)
    mesh.clock.run(mesh.clock.now_s + 30.0)
    assert lives(mesh, ids) == {Life.READY}
    assert generations(mesh, ids) == {1}
    assert mesh.state.intent.epoch.copies == planned
    assert not mesh.state.facts.problems
    assert not any("repair" in line for line in mesh.trace[before:])


def test_after_a_minute_without_anybody_each_is_judged_by_itself() -> None:
    mesh = started(SHAPE, settings=SETTINGS)
    for node in ("node-0", "node-1", "node-2"):
        mesh.cut_node(node)
    mesh.clock.run(mesh.clock.now_s + SETTINGS.cut_off_limit_s)
    assert generations(mesh, list(mesh.state.intent.places)) == {1}
    mesh.clock.run(mesh.clock.now_s + SUSPECTED_S + SETTINGS.suspect_limit_s)
    assert all(c.ending_s is not None for c in mesh.state.facts.components.values())


def test_of_two_nodes_what_runs_beside_the_controller_is_witness_enough() -> None:
    shape = replace(SHAPE, nodes=2, shards=8, capacity=4)
    mesh = started(shape, settings=replace(SETTINGS, controller_node="node-0"))
    on_it, alone = cut(mesh)
    assert alone
    mesh.clock.run(mesh.clock.now_s + SERVED_S)
    assert lost(mesh) == [f"node/{NODE}"]
    assert mesh.state.facts.problems.keys() >= {f"node/{NODE}"}
    assert lives(mesh, on_it) == {Life.SUSPECT}
