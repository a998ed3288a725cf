"""`expertmesh k8s` against an API server over HTTP: every verb, and how servers fail."""

import json
import re
import threading
import time

import pytest

from orchestrator.kubernetes import api as api_module
from tests.k8s.api_server import api_server
from tests.k8s.desk import KEY, MESH
from tests.k8s.kuberay import JOBS, PODS
from tests.k8s.pod_states import unschedulable

# -- apply and diff


def test_apply_makes_everything_and_then_nothing(desk):
    code, out, _ = desk.run("apply", "--wait")
    assert code == 0
    assert "created: RayCluster/chat" in out
    assert "job: RUNNING" in out
    assert "http://chat.expertmesh:8000" in out
    assert re.search(r"^\d+ unchanged$", desk.run("apply")[1], re.MULTILINE)


def test_diff_shows_what_apply_would_change_and_changes_nothing(desk):
    assert desk.run("diff")[0] == 1
    assert desk.store.objects == {}
    desk.run("apply")
    assert desk.run("diff") == (0, "", "")
    desk.write(MESH.replace("shards: 4", "shards: 5"))
    code, out, _ = desk.run("diff")
    assert code == 1
    assert "-    replicas: 4\n+    replicas: 5\n" in out
    assert desk.group()["replicas"] == 4


def test_a_dry_run_changes_nothing(desk):
    code, out, _ = desk.run("apply", "--dry-run")
    assert (code, desk.store.objects) == (0, {})
    assert "would be created: RayCluster/chat" in out


def test_what_the_config_no_longer_says_goes(desk):
    desk.write(MESH.replace("null}", "null, pods: {cpu: {node_selector: {zone: a}}}}"))
    desk.run("apply")
    assert desk.group()["template"]["spec"]["nodeSelector"] == {"zone": "a"}
    desk.write(MESH)
    desk.run("apply")
    assert "nodeSelector" not in desk.group()["template"]["spec"]


def test_a_running_mesh_keeps_its_config_until_it_is_restarted(desk):
    desk.run("apply")
    job = (JOBS, *KEY[1:])
    before = desk.store.objects[job]
    desk.write(MESH + "logging: {level: debug}\n")
    out = desk.run("apply")[1]
    assert "kept: RayJob/chat (the mesh runs with its earlier config" in out
    assert desk.store.objects[job]["metadata"] == before["metadata"]
    out = desk.run("apply", "--restart")[1]
    assert "stopping: RayJob/chat" in out
    assert "created: RayJob/chat" in out


def test_fields_of_another_manager_are_left_alone_unless_forced(desk):
    desk.run("apply")
    key = ("/api/v1/services", "expertmesh", "chat")
    service = desk.store.get(key)
    service["spec"]["type"] = "LoadBalancer"
    desk.store.put(key, service, "cloud-team")
    err = desk.refused("apply")
    assert 'Service/chat: Apply failed with 1 conflict: conflict with "cloud-team"' in err
    assert "--force" in err
    assert desk.run("apply", "--force")[0] == 0
    assert desk.store.get(key)["spec"]["type"] == "ClusterIP"


def test_apply_never_lowers_replicas(desk):
    desk.run("apply")
    desk.write(MESH.replace("shards: 4", "shards: 2"))
    out = desk.run("apply")[1]
    assert "cpu keeps 4 pods, not 2" in out
    assert desk.group()["replicas"] == 4
    assert desk.operator.ended == []


def test_with_the_autoscaler_replicas_are_its_own(desk):
    text = MESH.replace("null}", "null, autoscaler: true}")
    desk.write(text)
    desk.run("apply")
    cluster = desk.store.get(KEY)
    cluster["spec"]["workerGroupSpecs"][1]["replicas"] = 6
    desk.store.put(KEY, cluster, "autoscaler")
    assert desk.run("apply")[1].strip().endswith("unchanged")
    assert desk.group()["replicas"] == 6


# -- waiting


def test_waiting_tells_each_step(desk):
    desk.operator.pending["cpu"] = {"conditions": []}

    def start_slowly():
        for pod in sorted(k for k in desk.store.objects if k[0] == PODS and "cpu" in k[2]):
            time.sleep(0.05)
            with desk.store.lock:
                desk.store.set_status(pod, {"conditions": [{"type": "Ready", "status": "True"}]})

    desk.run("apply")
    desk.operator.pending.clear()
    starter = threading.Thread(target=start_slowly)
    starter.start()
    code, out, _ = desk.run("apply", "--wait")
    starter.join()
    assert code == 0
    steps = re.findall(r"cpu (\d)/4", out)
    assert steps == sorted(steps)
    assert steps[-1] == "4"


def test_a_pod_that_cannot_start_is_explained(desk):
    desk.operator.pending["cpu"] = unschedulable("0/3 nodes are available: 3 node(s) had taints.")
    words = "no node takes it (0/3 nodes are available: 3 node(s) had taints.)"
    err = desk.refused("apply", "--wait", "--timeout", "1")
    assert "not ready after 1 s (pods ready: head 1/1, engine 1/1, cpu 0/4" in err
    assert words in err
    assert "(and 3 more)" in err
    code, out, _ = desk.run("status")
    assert code == 1
    assert words in out


def test_a_mesh_that_ends_is_not_waited_for(desk):
    desk.operator.job_status = "FAILED"
    assert "the mesh's job has ended: FAILED" in desk.refused("apply", "--wait")


# -- status


def test_status_of_a_mesh(desk):
    assert "there is no mesh chat" in desk.refused("status")
    desk.run("apply")
    code, out, _ = desk.run("status")
    assert code == 0
    assert out.splitlines()[3].split() == ["cpu", "4", "4", "4"]
    assert "mesh: RUNNING" in out
    said = json.loads(desk.run("status", "--json")[1])
    assert said["started"] is True
    assert {g["name"]: g["ready"] for g in said["groups"]} == {"head": 1, "engine": 1, "cpu": 4}


# -- delete


def test_delete_stops_the_mesh_first_and_keeps_the_state(desk):
    desk.run("apply")
    code, out, _ = desk.run("delete")
    assert code == 0
    assert out.index("stopping: RayJob/chat") < out.index("deleted: RayCluster/chat")
    assert [key[2] for key in desk.store.objects] == ["chat-state"]
    desk.run("delete", "--volumes")
    assert desk.store.objects == {}


def test_delete_takes_away_last_what_allows_it(desk):
    desk.run("apply")
    asked = len(desk.server.requests)
    desk.run("delete", "--volumes")
    assert desk.server.requests[-1].startswith("DELETE")
    assert desk.server.requests[-1].endswith("/roles/chat-operator")
    assert len([r for r in desk.server.requests[asked:] if "/roles/" in r]) == 1


def test_what_a_finalizer_holds_is_waited_for_and_named(desk):
    desk.run("apply")
    key = ("/api/v1/persistentvolumeclaims", "expertmesh", "chat-state")
    held = desk.store.get(key)
    held["metadata"]["finalizers"] = ["kubernetes.io/pvc-protection"]
    desk.store.put(key, held)
    err = desk.refused("delete", "--volumes", "--timeout", "1")
    assert "PersistentVolumeClaim/chat-state is still there after 1 s" in err
    assert "(it waits for kubernetes.io/pvc-protection)" in err


def test_delete_of_nothing_is_no_error(desk):
    assert desk.run("delete")[0] == 0


# -- servers that refuse


def test_rights_that_are_missing_are_named(desk):
    desk.server.refuse(
        "PATCH", "rayclusters", 403, times=9,
        message='rayclusters.ray.io "chat" is forbidden: User "eve" cannot patch resource '
        '"rayclusters" in API group "ray.io" in the namespace "expertmesh"',
    )  # fmt: skip
    err = desk.refused("apply")
    assert err == (
        "error: you may not patch rayclusters in namespace expertmesh: have the Role MESH-operator "
        "bound to you (docs/kubernetes.md)\n"
    )


@pytest.mark.parametrize(
    ("verb", "method"),
    [("apply", "GET"), ("diff", "PATCH"), ("status", "GET"), ("delete", "DELETE")],
)
def test_rights_that_are_missing_are_named_by_every_verb(desk, verb, method):
    desk.run("apply")
    desk.server.refuse(
        method, "ray", 403, times=99,
        message=f'User "eve" cannot {method.lower()} resource "rayclusters" in API group "ray.io"',
    )  # fmt: skip
    assert f"error: you may not {method.lower()} rayclusters: have" in desk.refused(verb)


def test_somebody_unknown_is_told_so(desk):
    desk.kubeconfig = desk.server.kubeconfig(desk.folder, token="wrong")
    assert "does not know you: log in to it again" in desk.refused("apply")


@pytest.mark.parametrize(
    ("groups", "words"),
    [
        ({}, "does not know ray.io: KubeRay's operator is not installed"),
        ({"ray.io": ["v1alpha1"]}, "serves ray.io in v1alpha1, not in v1"),
    ],
)
@pytest.mark.parametrize("verb", ["apply", "diff", "status"])
def test_kinds_that_are_not_there_are_named(desk, groups, words, verb):
    desk.server.groups = {"policy": ["v1"]} | groups
    assert words in desk.refused(verb)
    assert desk.store.objects == {}


def test_without_prometheus_operator_the_key_is_named(desk):
    desk.write(MESH.replace("kubernetes: {monitoring_namespace: null}", ""))
    del desk.server.groups["monitoring.coreos.com"]
    err = desk.refused("apply")
    assert "Prometheus' operator is not installed" in err
    assert "kubernetes.monitoring_namespace: null" in err


def test_a_kubernetes_that_is_too_old_is_named_before_anything_is_made(desk):
    desk.server.groups["policy"] = ["v1beta1"]
    err = desk.refused("apply")
    assert "serves policy in v1beta1, not in v1" in err
    assert "use Kubernetes 1.25 or newer" in err
    assert desk.store.objects == {}


def test_a_missing_namespace_is_named(desk):
    desk.store.namespaces.clear()
    assert 'namespaces "expertmesh" not found: create it' in desk.refused("apply")


def test_what_the_server_does_not_take_is_passed_on(desk):
    desk.server.refuse("PATCH", "rayclusters", 422, 'RayCluster "chat" is invalid: spec: bad')
    assert 'does not take RayCluster/chat: RayCluster "chat" is invalid' in desk.refused("apply")


def test_a_field_that_the_crd_does_not_have_is_no_reason_to_try_again(desk):
    desk.server.refuse(
        "PATCH", "rayclusters", 500,
        "failed to create typed patch object: .spec.authOptions: field not declared in schema",
    )  # fmt: skip
    err = desk.refused("apply")
    assert "does not take RayCluster/chat" in err
    assert "KubeRay's CRDs may be older than 1.7" in err


def test_what_is_being_deleted_is_not_applied(desk):
    desk.run("apply")
    cluster = desk.store.get(KEY)
    cluster["metadata"]["finalizers"] = ["ray.io/gcs-ft-redis-cleanup-finalizer"]
    desk.store.put(KEY, cluster)
    desk.store.delete(KEY)
    err = desk.refused("apply")
    assert "RayCluster/chat is being deleted (it waits for ray.io/gcs-ft-redis-cleanup" in err
    assert "apply again when it is gone" in err


@pytest.mark.parametrize("status", [0, 429, 503])
def test_a_question_is_asked_again_where_the_server_is_busy(desk, status):
    desk.run("apply")
    desk.server.refuse("GET", "rayclusters", status, "too many requests", times=2)
    assert desk.run("status")[0] == 0
    desk.server.refuse("PATCH", "services/chat", status, "too many requests", times=1)
    asked = len(desk.server.requests)
    desk.refused("apply")
    patches = [r for r in desk.server.requests[asked:] if r.startswith("PATCH")]
    assert len([r for r in patches if "services/chat" in r]) == 1, "a change is not repeated"


def test_no_server_is_one_line(desk, tmp_path):
    with api_server() as gone:
        desk.kubeconfig = gone.kubeconfig(tmp_path)
    assert "does not answer" in desk.refused("apply")


@pytest.mark.parametrize("verb", ["apply", "diff", "status", "delete"])
def test_a_server_that_hangs_is_one_line(desk, monkeypatch, verb):
    monkeypatch.setattr(api_module, "REQUEST_TIMEOUT_S", 0.2)
    monkeypatch.setattr(api_module.KubernetesApi.__init__, "__defaults__", (0.2,))
    with desk.store.lock:
        assert "does not answer (timed out)" in desk.refused(verb)


@pytest.mark.parametrize(
    ("text", "words"), [("{", "no Kubernetes cluster is configured"), ("{}", "is configured")]
)
def test_a_kubeconfig_that_is_none_is_one_line(desk, text, words):
    desk.kubeconfig.write_text(text)
    assert words in desk.refused("apply")


def test_a_context_that_is_not_there_is_one_line(desk):
    assert "context" in desk.refused("apply", "--context", "elsewhere")
