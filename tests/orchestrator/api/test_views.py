"""What is shown of a mesh is what its control plane knows: views of simulated meshes."""

from dataclasses import replace

from actors.dispatch.report import DispatchReport, ShardReport
from orchestrator.api.models import ClusterView, PlacementView
from orchestrator.api.views import cluster_view, placement_view
from orchestrator.control.settings import PoolLimits, Settings
from orchestrator.control.state import State
from tests.sim.mesh import Shape, SimMesh

SETTINGS = Settings(
    suspect_limit_s=8.0, stable_s=60.0, shard_pools={"cpu": PoolLimits(2, 9)}, min_copies=1
)


def started(shape: Shape, until_s: float = 30.0, settings: Settings = SETTINGS) -> SimMesh:
    mesh = SimMesh(0, shape, settings)
    mesh.start_controller()
    mesh.clock.run(until_s)
    return mesh


def seen(mesh: SimMesh, **figures: object) -> ClusterView:
    assert mesh.state is not None
    view = cluster_view(mesh.state, mesh.clock.now_s, mesh="demo", **figures)
    assert ClusterView.model_validate_json(view.model_dump_json()) == view
    return view


def placed(state: State | None) -> PlacementView:
    assert state is not None
    view = placement_view(state)
    assert PlacementView.model_validate_json(view.model_dump_json()) == view
    return view


def test_a_mesh_that_serves() -> None:
    mesh = started(Shape(shards=4, nodes=2, routers=1))
    view = seen(mesh, pids={"cpu-1": 77})
    places = {place.id: place for place in view.places}
    assert sorted(places) == ["cpu-0", "cpu-1", "cpu-2", "cpu-3", "engine-0", "router-0"]
    shard, process = places["cpu-1"], mesh.processes["cpu-1"][0]
    assert (shard.life, shard.pool, shard.node, shard.pid) == ("ready", "cpu", "node-1", 77)
    assert shard.incarnation == f"{process.incarnation:016x}"
    assert (shard.copies, shard.held_bytes) == (
        len(process.holdings),
        len(process.holdings) * 1_000_000,
    )
    assert places["engine-0"].capacity_bytes == 0
    pools = {pool.id: (pool.size, pool.ready, pool.least, pool.most) for pool in view.pools}
    assert pools["cpu"] == (4, 4, 2, 9)
    assert [node.name for node in view.nodes] == ["node-0", "node-1"]
    assert (view.transaction, view.problems, view.followed) == (None, {}, True)
    assert view.dispatchers[0].adopted == view.epoch


def test_ways_to_shards_are_the_slowest_that_were_measured() -> None:
    mesh = started(Shape(shards=4, nodes=2))
    near = ShardReport("cpu-0", 7, round_trip_s=40e-6, bytes_per_s=5e9)
    far = ShardReport("cpu-0", 7, round_trip_s=900e-6, bytes_per_s=9e9)
    other = ShardReport("cpu-2", 8, round_trip_s=50e-6, bytes_per_s=4e9)
    reports = {
        "a": (DispatchReport(shards=(near, other, ShardReport("cpu-1", 9))), 0.1),
        "b": (DispatchReport(shards=(far,)), 0.1),
    }
    view = seen(mesh, reports=reports)
    ways = {place.id: (place.round_trip_us, place.bytes_per_s) for place in view.places}
    assert ways["cpu-0"] == (900.0, 5e9)
    assert ways["cpu-2"] == (50.0, 4e9)
    assert ways["cpu-1"] == ways["engine-0"] == (None, None)
    on = {node.name: (node.round_trip_us, node.bytes_per_s) for node in view.nodes}
    places = {place.id: place.node for place in view.places}
    assert on[places["cpu-0"]] == (
        (900.0, 4e9) if places["cpu-0"] == places["cpu-2"] else (900.0, 5e9)
    )


def test_before_the_first_placement() -> None:
    mesh = started(Shape(shards=4), until_s=2.0)
    view = seen(mesh)
    assert (view.epoch, view.followed) == (None, False)
    assert {place.life for place in view.places} == {"starting"}
    placement = placed(mesh.state)
    assert (placement.shards, placement.least_copies) == ({}, 0)
    assert not placement.survives_any_shard


def test_a_transaction_under_way_says_how_far_it_is() -> None:
    settings = replace(SETTINGS, load_bytes_per_s=1e6)
    mesh = started(Shape(shards=4), until_s=1.0, settings=settings)
    while mesh.state.intent.transaction is None:
        mesh.clock.run(mesh.clock.now_s + 0.1)
    mesh.clock.run(mesh.clock.now_s + 1.0)
    running = seen(mesh).transaction
    assert (running.kind, running.phase, running.batch) == ("place", "preparing", 1)
    assert running.copies == running.bytes // 1_000_000 >= 16
    assert 0.5 < running.phase_s < 2.0


def test_what_a_loss_would_take() -> None:
    mesh = started(Shape(shards=4, capacity=6, nodes=4))
    view = placed(mesh.state)
    held = {id: sum(map(len, layers.values())) for id, layers in view.shards.items()}
    assert view.layers == [0, 1]
    assert sum(map(sum, view.copies.values())) == sum(held.values())
    for id, loss in view.loss_of_shard.items():
        alone = [
            f"{layer}/{expert}"
            for layer, experts in view.shards[id].items()
            for expert in experts
            if view.copies[layer][expert] == 1
        ]
        assert (loss.experts, loss.some) == (len(alone), alone[:8])
    assert not view.survives_any_shard
    assert view.loss_of_pool["cpu"].experts == 16


def test_two_copies_survive_any_shard_but_not_any_node() -> None:
    mesh = started(Shape(shards=4, capacity=9, nodes=1), settings=replace(SETTINGS, min_copies=2))
    view = placed(mesh.state)
    assert view.least_copies == 2
    assert (view.survives_any_shard, view.survives_any_node) == (True, False)
