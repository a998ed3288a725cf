"""`expertmesh k8s scale`: pods and shards together, in the order that loses no request.

The API server is the tests' own, over HTTP; the mesh is the control plane's real core in a
simulated world, also over HTTP.
"""

import httpx
import pytest

from orchestrator.cli import change as change_module
from tests.k8s.desk import MESH
from tests.k8s.kuberay import PODS
from tests.orchestrator.cli.core_mesh import CoreMesh, over_http
from tests.sim.mesh import Shape


@pytest.fixture
def mesh_url(monkeypatch):
    """A mesh whose control plane is the real core; its nodes are called node-0 to node-5."""
    monkeypatch.setattr(change_module, "POLL_S", 0.02)
    core = CoreMesh(shape=Shape(shards=4, engines=1, capacity=16, nodes=9))
    with over_http(core) as url:
        yield url


def test_scaling_up_makes_pods_first_and_then_shards(desk, mesh_url):
    desk.run("apply")
    code, out, err = desk.run("scale", "cpu", "5", "--url", mesh_url)
    assert code == 0, err
    assert desk.group()["replicas"] == 5
    assert out.index("cpu 5/5") < out.index("cpu: 4 -> 5")
    assert desk.operator.ended == []


def test_scaling_down_ends_the_pods_that_hold_nothing(desk, mesh_url):
    view = httpx.get(f"{mesh_url}/api/v1/cluster").json()
    nodes = [place["node"] for place in view["places"] if place["pool"] == "cpu"]
    desk.operator.names["cpu"] = list(nodes)
    desk.run("apply")
    code, out, err = desk.run("scale", "cpu", "2", "--url", mesh_url)
    assert code == 0, err
    after = httpx.get(f"{mesh_url}/api/v1/cluster").json()
    left = {place["node"] for place in after["places"] if place["pool"] == "cpu"}
    assert len(left) == 2
    assert set(desk.operator.ended) == set(nodes) - left
    assert {k[2] for k in desk.store.objects if k[0] == PODS} >= left
    assert desk.group()["replicas"] == 2
    assert desk.group()["scaleStrategy"] == {"workersToDelete": []}
    assert "ending node-" in out


def test_an_apply_after_scaling_is_no_conflict(desk, mesh_url):
    desk.run("apply")
    desk.run("scale", "cpu", "5", "--url", mesh_url)
    desk.write(MESH.replace("null}", "null, image: 'mesh:2'}"))
    code, out, err = desk.run("apply")
    assert code == 0, err
    assert desk.group()["replicas"] == 5
    assert "cpu keeps 5 pods" in out


def test_a_refusal_of_the_mesh_ends_no_pod(desk, mesh_url):
    desk.run("apply")
    code, _, err = desk.run("scale", "cpu", "0", "--url", mesh_url)
    assert code == 1
    assert "a pool has at least one member" in err
    assert desk.operator.ended == []


def test_changes_of_others_meanwhile_are_read_again(desk, mesh_url):
    desk.run("apply")
    desk.server.refuse("PATCH", "rayclusters", 409, "the object has been modified", times=2)
    assert desk.run("scale", "cpu", "5", "--url", mesh_url)[0] == 0
    desk.server.refuse("PATCH", "rayclusters", 409, "the object has been modified", times=9)
    err = desk.refused("scale", "cpu", "6", "--url", mesh_url)
    assert "was changed by somebody else 5 times in a row" in err


def test_with_the_autoscaler_only_the_mesh_is_asked(desk, mesh_url):
    desk.write(MESH.replace("null}", "null, autoscaler: true}"))
    desk.run("apply")
    before = len([r for r in desk.server.requests if r.startswith("PATCH")])
    assert desk.run("scale", "cpu", "5", "--url", mesh_url)[0] == 0
    assert len([r for r in desk.server.requests if r.startswith("PATCH")]) == before


def test_a_dry_run_of_scale_says_what_it_would_do(desk):
    desk.run("apply")
    code, out, _ = desk.run("scale", "cpu", "2", "--dry-run")
    assert (code, out) == (0, "would be done: cpu from 4 to 2 pods, 2 shards\n")


def test_an_unknown_pool_is_one_line(desk):
    assert "has no pool cqu: did you mean cpu?" in desk.refused("scale", "cqu", "2")


def test_a_mesh_that_is_not_there_cannot_be_scaled(desk):
    assert "there is no RayCluster chat" in desk.refused("scale", "cpu", "2")


def test_an_endpoint_is_needed_to_scale(desk):
    desk.run("apply")
    assert "--url" in desk.refused("scale", "cpu", "2")
    assert desk.operator.ended == []
