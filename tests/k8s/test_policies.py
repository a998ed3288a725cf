"""What every pod keeps to, whatever the config says."""

import subprocess

import pytest

from actors.wire.node import node_id
from orchestrator.kubernetes.pods import THIS_NODE
from orchestrator.kubernetes.render import render
from tests.k8s.meshes import OVERLAYS, config, one, overlay
from tests.k8s.schemas import pod_templates

MESHES = [pytest.param(overlay(name), id=name) for name in OVERLAYS]
MESHES.append(pytest.param(config(model_claim="m", model_fingerprint="0" * 32), id="checked"))


def pods(mesh):
    return [template["spec"] for template in pod_templates(one(mesh, "RayCluster"))]


def containers(mesh):
    return [c for pod in pods(mesh) for c in [*pod["containers"], *pod.get("initContainers", [])]]


@pytest.mark.parametrize("mesh", MESHES)
def test_nobody_is_root_or_privileged(mesh):
    for pod in pods(mesh):
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
        assert not any("hostPath" in volume for volume in pod["volumes"])
    for container in containers(mesh):
        security = container["securityContext"]
        assert security["allowPrivilegeEscalation"] is False
        assert security["capabilities"] == {"drop": ["ALL"]}
        assert not security.get("privileged")


@pytest.mark.parametrize("mesh", MESHES)
def test_everybody_has_limits_and_a_fixed_image(mesh):
    for container in containers(mesh):
        resources = container["resources"]
        assert resources["limits"].keys() >= {"cpu", "memory"}
        assert resources["requests"] == resources["limits"]
        tag = container["image"].rpartition("/")[2].partition(":")[2]
        assert tag
        assert tag != "latest"


@pytest.mark.parametrize("mesh", MESHES)
def test_pods_reach_kubernetes_only_for_the_autoscaler(mesh):
    head, *workers = pods(mesh)
    assert head["automountServiceAccountToken"] is mesh.kubernetes.autoscaler
    assert not any(pod["automountServiceAccountToken"] for pod in workers)
    for role in (item for item in render(mesh) if item["kind"] == "Role"):
        for rule in role["rules"]:
            assert "*" not in rule["verbs"] + rule["resources"] + rule["apiGroups"]
            assert "secrets" not in rule["resources"]


@pytest.mark.parametrize("mesh", MESHES)
def test_selectors_select_pods_that_there_are(mesh):
    templates = [t["metadata"]["labels"] for t in pod_templates(one(mesh, "RayCluster"))]

    def selected(labels):
        return [t for t in templates if labels.items() <= t.items()]

    for item in render(mesh):
        spec = item.get("spec", {})
        match item["kind"]:
            case "Service":
                assert len(selected(spec["selector"])) == 1
            case "NetworkPolicy":
                assert selected(spec["podSelector"]["matchLabels"]) == templates
            case "PodDisruptionBudget" | "PodMonitor":
                assert selected(spec["selector"]["matchLabels"])


@pytest.mark.parametrize("mesh", MESHES)
def test_the_workers_leave_in_order_and_in_time(mesh):
    for pod in pods(mesh)[1:]:
        command = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][-1]
        assert command.startswith(f'expertmesh drain "{THIS_NODE}"')
        timeout = int(command.partition("--timeout ")[2].partition(";")[0])
        assert pod["terminationGracePeriodSeconds"] > timeout


def test_a_pod_calls_its_node_as_the_mesh_does():
    said = subprocess.check_output(["bash", "-c", f'echo "{THIS_NODE}"'], text=True)
    assert said.strip() == f"node/{node_id()}"
