"""Random faults on simulated meshes, with the invariants checked after every event.

A failing seed prints the end of its event trace and the call that replays it.
"""

from collections.abc import Callable
from dataclasses import replace

import pytest

from orchestrator.control.domains import kept_together
from orchestrator.control.keys import EXPERT, NO_KEYS, PlacedKey
from orchestrator.control.lifecycle import Life
from orchestrator.control.plan_request import PlanRequest, Proposal
from orchestrator.control.rolling import outdated
from orchestrator.control.settings import Settings
from orchestrator.control.turn import Turn
from tests.sim.faults import Faults
from tests.sim.mesh import Shape, SimMesh
from tests.sim.scenario import check_healed, simulate

SMALL = Shape(routers=1, load_fails=0.05, crash=0.002)
TWO_POOLS = Shape(shards=5, gpus=3, engines=2, routers=1, crash=0.002)
TWO_COPIES = Shape(shards=6, capacity=9, experts=8, load_fails=0.02, crash=0.01)
SHORT = Settings(suspect_limit_s=8.0, stable_s=60.0)
ROLLING = replace(SHORT, rolling_limit_s=60.0, drain_timeout_s=5.0)


@pytest.mark.parametrize("seed", range(14))
def test_everything_heals_after_random_faults(seed: int) -> None:
    simulate(seed, SMALL, calm_s=25.0 if seed % 4 else 0.0, faults_s=100.0, heal_s=150.0)


@pytest.mark.parametrize("seed", range(100, 105))
def test_two_copies_of_everything(seed: int) -> None:
    simulate(seed, TWO_COPIES, settings=replace(SHORT, min_copies=2))


@pytest.mark.parametrize("seed", range(200, 206))
def test_two_pools_and_two_engines(seed: int) -> None:
    """One pool is a failure domain, each node of the other is one."""
    settings = replace(ROLLING, domains={"gpu": "a rack"})
    simulate(seed, TWO_POOLS, faults_s=100.0, heal_s=150.0, settings=settings)


def test_a_seed_replays() -> None:
    first, second = simulate(7, SMALL, heal_s=60.0), simulate(7, SMALL, heal_s=60.0)
    assert first.trace == second.trace


@pytest.mark.long
def test_thousands_of_shards() -> None:
    shape = Shape(
        shards=2000, engines=4, layers=16, experts=250, capacity=6, nodes=50, start_s=4.0,
        batch_s=0.1,
    )  # fmt: skip
    mesh = SimMesh(1, shape, SHORT, round_robin)
    mesh.start_controller()
    mesh.clock.run(15.0)
    faults = Faults(mesh, pause_s=0.2)
    faults.begin()
    mesh.clock.run(25.0)
    faults.stop()
    mesh.clock.run(60.0)
    check_healed(mesh)


def round_robin(request: PlanRequest) -> Proposal:
    """Every key on two shards in turn: the real planner takes minutes for so many devices."""
    shards, keys = sorted(request.shards), sorted(request.keys)
    target: dict[str, set] = {shard: set() for shard in shards}
    for number, key in enumerate(keys):
        target[shards[number % len(shards)]].add(key)
        target[shards[(7 * number + 1) % len(shards)]].add(key)
    return Proposal(
        target={shard: frozenset(held) for shard, held in target.items() if held},
        balancedness=1.0,
        predicted=1.0,
        possible=1.0,
        bytes=1,
        load=request.load,
        reason=request.reason,
        anew=request.anew,
    )


# -- single faults, and what exactly follows


def started(shape: Shape, seed: int = 0, settings: Settings = SHORT) -> SimMesh:
    mesh = SimMesh(seed, shape, settings)
    mesh.start_controller()
    mesh.clock.run(30.0)
    assert mesh.state is not None
    assert mesh.state.intent.epoch is not None
    return mesh


def unserved(mesh: SimMesh) -> int:
    assert mesh.state is not None
    return len(mesh.state.intent.keys - mesh.dispatchers[0].served(mesh.processes))


def test_a_killed_shard_is_replaced_and_loads_its_experts_again() -> None:
    mesh = started(Shape())
    assert mesh.state is not None
    planned = mesh.state.intent.planned
    mesh.kill(mesh.processes["cpu-3"][0], "SIGKILL")
    mesh.clock.run(70.0)
    place = mesh.state.intent.places["cpu-3"]
    assert (place.generation, place.restarts) == (2, 1)
    assert mesh.state.facts.components["cpu-3"].life is Life.READY
    assert mesh.state.intent.planned == planned
    assert mesh.state.intent.epoch.copies == planned
    assert unserved(mesh) == 0


def test_the_last_copy_lost_is_loaded_by_survivors_long_before_the_replacement_starts() -> None:
    mesh = started(Shape(shards=4, capacity=6, start_s=600.0 / 1000))
    assert mesh.state is not None
    mesh.shape = replace(mesh.shape, start_s=60.0)
    lost = mesh.processes["cpu-1"][0]
    alone = lost.holdings - NO_KEYS.union(
        *(p.holdings for p in mesh.all_processes() if p is not lost)
    )
    assert alone
    mesh.kill(lost, "SIGKILL")
    mesh.clock.run(mesh.clock.now_s + 2.5)
    assert unserved(mesh) == 0
    assert mesh.state.facts.components["cpu-1"].life is Life.STARTING


def test_a_hung_shard_gets_weight_zero_moves_nothing_and_is_replaced_after_the_limit() -> None:
    mesh = started(Shape())
    assert mesh.state is not None
    before = mesh.state.intent.epoch.copies
    mesh.processes["cpu-2"][0].hung = True
    mesh.clock.run(mesh.clock.now_s + 9.5)  # clients count for 5 s, then the misses
    assert mesh.state.facts.components["cpu-2"].life is Life.SUSPECT
    assert mesh.state.intent.epoch.weights == {"cpu-2": 0.0}
    assert mesh.state.intent.epoch.copies == before
    mesh.clock.run(mesh.clock.now_s + 40.0)
    assert mesh.state.intent.places["cpu-2"].generation == 2
    assert mesh.state.intent.epoch.weights == {}


def test_a_shard_that_wakes_in_time_is_taken_back() -> None:
    mesh = started(Shape())
    assert mesh.state is not None
    mesh.processes["cpu-2"][0].hung = True
    mesh.clock.run(mesh.clock.now_s + 9.5)
    mesh.processes["cpu-2"][0].wake()
    mesh.clock.run(mesh.clock.now_s + 3.0)
    assert mesh.state.facts.components["cpu-2"].life is Life.READY
    assert mesh.state.intent.places["cpu-2"].generation == 1
    assert mesh.state.intent.epoch.weights == {}


def test_a_shard_only_the_controller_cannot_see_is_left_alone() -> None:
    mesh = started(Shape())
    assert mesh.state is not None
    mesh.network.cut.add(frozenset({"controller", "cpu-2"}))
    mesh.clock.run(mesh.clock.now_s + 60.0)
    assert mesh.state.facts.components["cpu-2"].life is Life.READY
    assert mesh.state.intent.places["cpu-2"].generation == 1
    assert "its clients get answers" in mesh.state.facts.problems["cpu-2"]


def test_a_slow_shard_weighs_less_and_keeps_its_experts() -> None:
    mesh = started(Shape())
    assert mesh.state is not None
    before = mesh.state.intent.epoch
    mesh.processes["cpu-2"][0].slowness = 4.0
    mesh.clock.run(mesh.clock.now_s + 6.0)
    assert mesh.state.intent.epoch.weights["cpu-2"] == pytest.approx(0.25, abs=0.06)
    assert mesh.state.intent.epoch.copies == before.copies


def test_a_place_that_dies_again_and_again_is_given_up_and_its_experts_move() -> None:
    mesh = started(Shape())
    assert mesh.state is not None

    def kill_again() -> None:
        for process in mesh.processes["cpu-0"]:
            mesh.kill(process, "bad memory")
        mesh.clock.after(2.0, kill_again)

    kill_again()
    mesh.clock.run(200.0)
    assert mesh.state.facts.components["cpu-0"].life is Life.FAILED
    assert "given up" in mesh.state.facts.problems["cpu-0"]
    assert "cpu-0" not in mesh.state.intent.epoch.copies
    assert unserved(mesh) == 0


def test_a_killed_engine_and_router_are_replaced() -> None:
    mesh = started(Shape(routers=1))
    assert mesh.state is not None
    for id in ("engine-0", "router-0"):
        mesh.kill(mesh.processes[id][0], "SIGKILL")
    mesh.clock.run(60.0)
    for id in ("engine-0", "router-0"):
        assert mesh.state.facts.components[id].life is Life.READY
        assert mesh.state.intent.places[id].generation == 2


def test_a_changed_load_is_rebalanced_and_nothing_is_unserved_meanwhile() -> None:
    mesh = started(Shape(layers=4, experts=16, capacity=14))
    assert mesh.state is not None
    mesh.clock.run(40.0)
    for layer in mesh.load:
        layer[0] = 100.0
    worst = 0
    while mesh.clock.now_s < 100.0:
        mesh.clock.run(mesh.clock.now_s + 0.05)
        worst = max(worst, unserved(mesh))
    assert mesh.state.intent.transactions > 1
    assert mesh.state.intent.transaction is None
    assert worst == 0


def test_a_drained_shard_ends_when_others_hold_what_it_held() -> None:
    mesh = started(Shape())
    assert mesh.state is not None
    mesh.ask("one", "drain", "cpu-5")
    worst = 0
    while mesh.clock.now_s < 60.0:
        mesh.clock.run(mesh.clock.now_s + 0.05)
        worst = max(worst, unserved(mesh))
    assert mesh.answers == {"one": True}
    assert "cpu-5" not in mesh.state.intent.places
    assert worst == 0


def test_shards_that_join_get_experts_and_a_pool_shrinks_again() -> None:
    mesh = started(Shape())
    assert mesh.state is not None
    mesh.ask("one", "scale", "cpu", 10)
    mesh.clock.run(80.0)
    assert mesh.state.intent.epoch.copies.keys() >= {"cpu-8", "cpu-9"}
    mesh.ask("two", "scale", "cpu", 6)
    mesh.clock.run(140.0)
    assert sorted(mesh.state.intent.epoch.copies) == [f"cpu-{n}" for n in range(6)]
    assert len(mesh.all_processes()) == 7
    mesh.ask("three", "scale", "cpu", 1)
    mesh.clock.run(142.0)
    assert mesh.answers == {"one": True, "two": True, "three": False}


# -- verbs


def asked(mesh: SimMesh, verb: str, target: str = "", number: int = 0, **how: bool) -> str:
    """Ask, wait for the answer, and say how it begins: "yes" or "no", then the text."""
    request = f"{verb}-{mesh.clock.now_s}"
    mesh.ask(request, verb, target, number, **how)
    while request not in mesh.answers:
        mesh.clock.run(mesh.clock.now_s + 0.05)
    return f"{'yes' if mesh.answers[request] else 'no'}: {mesh.texts[request]}"


def worst_until(mesh: SimMesh, done: Callable[[], bool], limit_s: float = 400.0) -> int:
    """Most keys that no dispatcher could get at any moment until then."""
    worst, end_s = 0, mesh.clock.now_s + limit_s
    while not done():
        assert mesh.clock.now_s < end_s, mesh.trace[-40:]
        mesh.clock.run(mesh.clock.now_s + 0.05)
        worst = max(worst, unserved(mesh))
    return worst


def test_a_rolling_restart_replaces_every_process_and_serves_every_expert_meanwhile() -> None:
    mesh = started(Shape(shards=6, capacity=6, engines=2))
    before = set(mesh.processes)
    assert asked(mesh, "rolling-restart", "all").startswith("yes: cpu-0, cpu-1")
    assert worst_until(mesh, lambda: mesh.state.intent.rolling is None) == 0
    places = mesh.state.intent.places
    assert {id: place.generation for id, place in places.items()} == dict.fromkeys(before, 2)
    assert {place.restarts for place in places.values()} == {0}
    assert sorted(mesh.state.intent.epoch.copies) == [f"cpu-{n}" for n in range(6)]


def test_replicas_make_a_rolling_restart_move_nothing() -> None:
    mesh = started(Shape(shards=4, capacity=9), settings=replace(SHORT, min_copies=2))
    planned, transactions = mesh.state.intent.planned, mesh.state.intent.transactions
    assert asked(mesh, "rolling-restart", "cpu").startswith("yes")
    assert worst_until(mesh, lambda: mesh.state.intent.rolling is None) == 0
    assert mesh.state.intent.planned == planned
    assert mesh.state.intent.transactions == transactions + 4  # each way back to the plan


def test_copies_are_parted_again_when_shards_come_back_on_other_nodes() -> None:
    """Their places in the plan were made for the nodes that they were on."""
    settings = replace(SHORT, min_copies=2, most_redundant=0, domains={"other": "a rack"})
    mesh = started(Shape(shards=6, capacity=9, nodes=2), settings=settings)

    def together() -> int:
        return len(kept_together(Turn(mesh.state, mesh.clock.now_s), mesh.state.intent.planned))

    assert together() == 0
    transactions = mesh.state.intent.transactions
    assert asked(mesh, "rolling-restart", "cpu-2").startswith("yes")
    assert worst_until(mesh, lambda: mesh.state.intent.rolling is None) == 0
    assert mesh.state.intent.transactions == transactions + 1, "on its own node it fits the plan"
    mesh.nodes = {"cpu-1": "node-0", "cpu-2": "node-1"}
    for id in mesh.nodes:  # after the first one node has no room to keep all apart
        assert asked(mesh, "rolling-restart", id).startswith("yes")
        assert worst_until(mesh, lambda: mesh.state.intent.rolling is None) == 0
    assert together() == 11
    # The planner leaves one that it could only part by loading more than it is worth.
    worst_until(mesh, lambda: together() <= 1 and mesh.state.intent.transaction is None)
    done = mesh.state.intent.transactions
    assert any("came back in another failure domain" in line for line in mesh.trace)
    mesh.clock.run(mesh.clock.now_s + 120.0)
    assert mesh.state.intent.transactions == done, "once"
    check_healed(mesh)


def test_a_new_controller_goes_on_with_a_rolling_restart() -> None:
    mesh = started(Shape(shards=6, capacity=6))
    assert asked(mesh, "rolling-restart", "cpu").startswith("yes")
    mesh.clock.run(mesh.clock.now_s + 20.0)
    mesh.kill_controller()
    mesh.clock.run(mesh.clock.now_s + 3.0)
    assert worst_until(mesh, lambda: mesh.state.intent.rolling is None) == 0
    assert {p.generation for p in mesh.state.intent.places.values() if p.pool == "cpu"} == {2}


def test_what_was_started_otherwise_is_replaced_and_nothing_else() -> None:
    """An upgrade: the next controller expects other shards and routers, and the same engines."""
    settings = replace(SHORT, origins={"cpu": "1", "router": "1", "engine": "1"})
    mesh = started(Shape(shards=6, capacity=6, engines=1, routers=1), settings=settings)
    assert asked(mesh, "rolling-restart", "changed") == (
        "no: every process runs with the installed code and the config"
    )
    mesh.settings = replace(settings, origins={"cpu": "2", "router": "2", "engine": "1"})
    mesh.kill_controller()
    mesh.clock.run(mesh.clock.now_s + 20.0)
    shards = [f"cpu-{n}" for n in range(6)]
    assert outdated(mesh.state) == [*shards, "router-0"]
    assert asked(mesh, "rolling-restart", "changed", dry_run=True).startswith(
        "yes: router-0, cpu-0"
    )
    assert asked(mesh, "rolling-restart", "changed").startswith("yes: router-0, cpu-0")
    assert worst_until(mesh, lambda: mesh.state.intent.rolling is None) == 0
    generations = {id: place.generation for id, place in mesh.state.intent.places.items()}
    assert generations == {**dict.fromkeys([*shards, "router-0"], 2), "engine-0": 1}
    assert outdated(mesh.state) == []


def test_a_rolling_restart_that_nobody_can_stand_in_for_is_refused() -> None:
    mesh = started(Shape(shards=2, capacity=9))
    assert asked(mesh, "rolling-restart", "cpu") == (
        "no: cpu-0 holds the only copy of 8 experts: the shards that stay have room for 8 copies, "
        "16 are needed (1 of each of 16 experts)"
    )
    assert asked(mesh, "rolling-restart", "engine") == (
        "no: engine-0 is the last engine that is ready: scale engine up first"
    )
    assert "did you mean cpu?" in asked(mesh, "rolling-restart", "cpuu")


def test_a_rolling_restart_can_be_stopped_and_only_one_runs() -> None:
    mesh = started(Shape(shards=6, capacity=6))
    assert asked(mesh, "stop-rolling-restart") == "no: no rolling restart is under way"
    assert asked(mesh, "rolling-restart", "cpu").startswith("yes")
    assert asked(mesh, "rolling-restart", "cpu-1").startswith("no: cpu is being restarted")
    mesh.clock.run(mesh.clock.now_s + 1.0)
    assert asked(mesh, "stop-rolling-restart").startswith("yes: 5 of cpu are left")
    mesh.clock.run(mesh.clock.now_s + 100.0)
    check_healed(mesh)
    generations = [p.generation for p in mesh.state.intent.places.values() if p.pool == "cpu"]
    assert sum(generations) <= 7


def pools_of(mesh: SimMesh, layer: int, expert: int) -> set[str]:
    """Pools whose shards serve the expert."""
    copies = mesh.state.intent.epoch.copies
    key = PlacedKey(EXPERT, layer, expert)
    return {mesh.state.intent.places[id].pool for id, keys in copies.items() if key in keys}


def test_a_pinned_expert_moves_and_stays_where_it_is_pinned_to() -> None:
    mesh = started(Shape(shards=4, gpus=2, capacity=5))
    for expert in range(4):
        assert asked(mesh, "pin", f"0/{expert} gpu").startswith("yes")
        assert worst_until(mesh, lambda: mesh.state.intent.transaction is None) == 0
    assert [pools_of(mesh, 0, expert) for expert in range(4)] == [{"gpu"}] * 4
    mesh.kill(mesh.processes["gpu-1"][0], "SIGKILL")
    for row in mesh.load:
        row[:4] = 50.0
    mesh.clock.run(mesh.clock.now_s + 120.0)
    assert [pools_of(mesh, 0, expert) for expert in range(4)] == [{"gpu"}] * 4
    mesh.kill_controller()
    mesh.clock.run(mesh.clock.now_s + 20.0)
    assert len(mesh.state.intent.rules) == 4
    assert asked(mesh, "unpin", "0/3").startswith("yes")
    assert asked(mesh, "unpin", "0/3") == "no: expert 0/3 is neither pinned nor banned"


def test_a_banned_expert_leaves_the_pool() -> None:
    mesh = started(Shape(shards=4, gpus=2, capacity=5))
    expert = next(e for e in range(8) if "gpu" in pools_of(mesh, 1, e))
    assert asked(mesh, "ban", f"1/{expert} gpu", dry_run=True).startswith("yes: would load")
    assert not mesh.state.intent.rules
    assert asked(mesh, "ban", f"1/{expert} gpu").startswith("yes")
    assert worst_until(mesh, lambda: mesh.state.intent.transaction is None) == 0
    assert pools_of(mesh, 1, expert) == {"cpu"}
    assert asked(mesh, "ban", f"1/{expert} cpu").startswith("no: that leaves expert 1/")


@pytest.mark.parametrize(
    ("verb", "target", "answer"),
    [
        ("pin", "0/1 gqu", "unknown pool of shards 'gqu': did you mean gpu?"),
        ("pin", "0/1", "no pool is named: give one, or several separated by commas"),
        ("pin", "0.1 gpu", "'0.1' is no expert: give LAYER/EXPERT, such as 3/17"),
        ("pin", "0/99 gpu", "layer 0 has no expert 99: the last is 7"),
        ("ban", "7/1 gpu", "layer 7 has no routed experts: the layers that have are 0 to 1"),
        ("cordon", "engine-0", "engine-0 is no shard: only shards hold copies"),
        ("cordon", "node/node-7", "unknown node 'node-7': did you mean node-2?"),
        ("drain", "cpu-99", "unknown component 'cpu-99': did you mean cpu-3?"),
        ("uncorton", "cpu-1", "unknown verb 'uncorton': did you mean uncordon?"),
    ],
)
def test_bad_names_are_told_with_the_nearest_one(verb: str, target: str, answer: str) -> None:
    mesh = started(Shape(shards=4, gpus=2, capacity=5))
    assert asked(mesh, verb, target) == f"no: {answer}"


def test_a_cordoned_node_gets_no_new_copies_and_keeps_what_it_has() -> None:
    mesh = started(Shape(shards=6, capacity=6))
    on_it = [p.place for p in mesh.all_processes() if p.node == "node-1" and p.place[0] == "c"]
    before = {id: mesh.state.intent.epoch.copies[id] for id in on_it}
    assert asked(mesh, "cordon", "node/node-1").startswith("yes: shards on node-1 get no new")
    mesh.ask("more", "scale", "cpu", 8)  # cpu-7 is on that node too
    mesh.clock.run(mesh.clock.now_s + 60.0)
    copies = mesh.state.intent.epoch.copies
    assert {id: copies[id] for id in on_it} == before
    assert "cpu-6" in copies
    assert "cpu-7" not in copies
    assert asked(mesh, "uncordon", "node/node-1").startswith("yes")
    mesh.clock.run(mesh.clock.now_s + 60.0)
    assert "cpu-7" in mesh.state.intent.epoch.copies


def test_a_drained_node_is_empty_at_last_and_nothing_is_unserved_meanwhile() -> None:
    mesh = started(Shape(shards=6, capacity=6, engines=2))
    assert asked(mesh, "drain", "node/node-1", dry_run=True).startswith("yes: cpu-1, cpu-4, eng")
    assert asked(mesh, "drain", "node/node-1").startswith("yes: cpu-1, cpu-4, engine-1")
    assert worst_until(mesh, lambda: "cpu-4" not in mesh.state.intent.places) == 0
    mesh.clock.run(mesh.clock.now_s + 20.0)
    assert {p.node for p in mesh.all_processes()} == {"node-0", "node-2"}
    assert asked(mesh, "drain", "node/node-0").startswith("no: cpu-0, cpu-3 holds the only copy")
