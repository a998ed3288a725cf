"""The commands against a real API server, with everything it refuses and fills in by itself.

Which server: see `conftest.py`. A namespace is made for each test and removed. No KubeRay has to
run: where pods are waited for, the tests write what its operator would.
"""

import threading
import time
from itertools import islice

import httpx
import pytest

from orchestrator.cli import change as change_module
from orchestrator.errors import UserError
from orchestrator.kubernetes.kinds import PODS, RAY_CLUSTER, RAY_JOB, Kind
from orchestrator.kubernetes.resize import grow, read_cluster, shrink
from tests.k8s.desk import MESH
from tests.k8s.real_cluster import Operator
from tests.orchestrator.cli.core_mesh import CoreMesh, over_http
from tests.sim.mesh import Shape

SERVICES = Kind("", "v1", "services")
OTHER = "somebody-else"


@pytest.fixture
def config(real):
    return str(real.config(MESH))


def changed(real, text, *replaced):
    return str(real.config(text.replace(*replaced)))


# -- every verb


def test_every_verb(real, config):
    assert real.run("diff", config)[0] == 1
    assert "would be created: RayCluster/chat" in real.done("apply", config, "--dry-run")
    assert real.api.get(RAY_CLUSTER, real.namespace, "chat") is None
    assert "created: RayCluster/chat" in real.done("apply", config)
    assert real.done("diff", config) == ""
    assert real.done("apply", config).strip().endswith("unchanged")
    assert "cpu" in real.run("status", config)[1]

    grow(real.api, real.namespace, "chat", "cpu", 6)
    shrink(real.api, real.namespace, "chat", "cpu", ["chat-cpu-of-nobody"])
    group = real.group("cpu")
    assert (group["replicas"], group["maxReplicas"]) == (5, 8)
    assert group["scaleStrategy"] == {"workersToDelete": ["chat-cpu-of-nobody"]}
    assert "cpu keeps 5 pods" in real.done("apply", config)

    real.done("delete", config, "--volumes", "--timeout", "60")
    assert real.api.get(RAY_CLUSTER, real.namespace, "chat") is None


def test_a_mesh_comes_up_is_sized_and_goes(real, config, monkeypatch):
    monkeypatch.setattr(change_module, "POLL_S", 0.02)
    core = CoreMesh(shape=Shape(shards=4, engines=1, capacity=16, nodes=9))
    with over_http(core) as url, Operator(real, "chat") as operator:
        places = httpx.get(f"{url}/api/v1/cluster").json()["places"]
        operator.names["cpu"] = [place["node"] for place in places if place["pool"] == "cpu"]
        assert "job: RUNNING" in real.done("apply", config, "--wait", "--timeout", "60")
        assert real.run("status", config)[0] == 0
        real.done("scale", config, "cpu", "5", "--url", url, "--timeout", "60")
        real.done("scale", config, "cpu", "3", "--url", url, "--timeout", "60")
        assert len(operator.ended) == 2
        assert real.group("cpu")["replicas"] == 3
        assert real.group("cpu")["scaleStrategy"] == {"workersToDelete": []}
        real.config(MESH + "logging: {level: debug}\n")
        assert "kept: RayJob/chat" in real.done("apply", config)
        restarted = real.done("apply", config, "--restart")
        assert "stopping: RayJob/chat" in restarted
        assert "created: RayJob/chat" in restarted
        real.done("delete", config, "--timeout", "60")


# -- who else changes it


def test_another_managers_field_is_a_conflict(real, config):
    real.done("apply", config)
    real.merge(SERVICES, "chat", {"spec": {"type": "LoadBalancer"}}, manager=OTHER)
    err = real.refused("apply", config)
    assert f'conflict with "{OTHER}"' in err
    assert ".spec.type" in err
    assert "--force" in err
    real.done("apply", config, "--force")
    assert real.api.get(SERVICES, real.namespace, "chat")["spec"]["type"] == "ClusterIP"


def test_two_conflicts_at_once_are_one_line(real, config):
    real.done("apply", config)
    spec = real.api.get(SERVICES, real.namespace, "chat")["spec"]
    body = {"type": "LoadBalancer", "selector": dict.fromkeys(spec["selector"], "other")}
    real.merge(SERVICES, "chat", {"spec": body}, manager=OTHER)
    err = real.refused("apply", config)
    assert OTHER in err
    assert ".spec.selector" in err


def test_a_change_since_it_was_read_is_a_conflict_and_read_again(real, config, monkeypatch):
    real.done("apply", config)
    read, labels = real.api.get, iter("abc")

    def and_then_changed(kind, namespace, name):
        found = read(kind, namespace, name)
        label = next(labels, None)
        if label:
            body = {"metadata": {"labels": {"changed": label}}}
            real.merge(RAY_CLUSTER, "chat", body, manager=OTHER)
        return found

    monkeypatch.setattr(real.api, "get", and_then_changed)
    grow(real.api, real.namespace, "chat", "cpu", 6)
    assert next(labels, None) is None
    assert real.group("cpu")["replicas"] == 6


def test_sizes_that_rays_autoscaler_wrote_are_no_conflict(real):
    config = changed(real, MESH, "null}", "null, autoscaler: true}")
    real.done("apply", config)
    groups = read_cluster(real.api, real.namespace, "chat")["spec"]["workerGroupSpecs"]
    groups[1]["replicas"] = 6
    spec = {"spec": {"workerGroupSpecs": groups}}
    real.merge(RAY_CLUSTER, "chat", spec, manager="python-requests")
    assert real.done("apply", config).strip().endswith("unchanged")
    assert real.group("cpu")["replicas"] == 6


def test_what_the_config_no_longer_says_goes(real):
    zone = "null, pods: {cpu: {node_selector: {zone: a}}}}"
    real.done("apply", changed(real, MESH, "null}", zone))
    assert real.group("cpu")["template"]["spec"]["nodeSelector"] == {"zone": "a"}
    real.done("apply", str(real.config(MESH)))
    assert "nodeSelector" not in real.group("cpu")["template"]["spec"]


def test_what_is_being_deleted_is_not_applied(real, config):
    real.done("apply", config)
    held = {"metadata": {"finalizers": ["expertmesh.io/of-a-test"]}}
    real.merge(RAY_CLUSTER, "chat", held, manager=OTHER)
    real.api.delete(RAY_CLUSTER, real.namespace, "chat")
    try:
        assert "RayCluster/chat is being deleted" in real.refused("apply", config)
    finally:
        real.merge(RAY_CLUSTER, "chat", {"metadata": {"finalizers": []}}, manager=OTHER)


# -- watching


def test_a_watch_from_a_forgotten_point_begins_with_a_list(real, config, monkeypatch):
    """410: the server's cache of changes begins after version 1."""
    real.done("apply", config)
    listed, select = [], real.api.select

    def of_long_ago(kind, namespace, labels):
        items, version = select(kind, namespace, labels)
        listed.append(version)
        return items, "1" if len(listed) == 1 else version

    monkeypatch.setattr(real.api, "select", of_long_ago)
    labels = {"app.kubernetes.io/name": "expertmesh"}
    found = []
    for event in real.api.watch(RAY_CLUSTER, real.namespace, labels, time.monotonic() + 20):
        found.append(event and (event.kind, event.item["metadata"]["name"]))
        if len(listed) == 2 and len([f for f in found if f]) == 2:
            break
    assert found == [("ADDED", "chat"), None, ("ADDED", "chat")]


def test_a_watch_goes_on_over_its_requests(real, config, monkeypatch):
    real.done("apply", config)
    later = threading.Timer(3.0, grow, (real.api, real.namespace, "chat", "cpu", 6))
    later.start()
    listed, select = [], real.api.select
    monkeypatch.setattr(real.api, "select", lambda *asked: listed.append(1) or select(*asked))
    labels = {"app.kubernetes.io/name": "expertmesh"}
    events = real.api.watch(RAY_CLUSTER, real.namespace, labels, time.monotonic() + 20)
    kinds = [event.kind for event in islice(filter(None, events), 2)]
    later.join()
    assert kinds == ["ADDED", "MODIFIED"]
    assert len(listed) == 1


# -- what it does not take


def test_an_unknown_field_is_named(real, config):
    real.done("apply", config)
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "chat", "namespace": real.namespace},
        "spec": {"selektor": {}},
    }
    with pytest.raises(UserError, match=r"does not take Service/chat: .*selektor.*may be older"):
        real.api.apply(service, force=True)


def test_a_namespace_that_is_not_there_is_named(real):
    config = real.folder / "mesh.yaml"
    config.write_text(MESH.replace("null}", "null, namespace: nowhere}"))
    assert 'namespaces "nowhere" not found: create it' in real.refused("apply", str(config))


def test_no_pod_is_there_at_first(real, config):
    real.done("apply", config)
    assert real.api.select(PODS, real.namespace, {"ray.io/cluster": "chat"})[0] == []
    assert real.api.get(RAY_JOB, real.namespace, "chat")["spec"]["submissionMode"] == "HTTPMode"
