"""The same commands against a real API server with KubeRay's CRDs.

EXPERTMESH_TEST_KUBECONFIG names a kubeconfig whose current context may make namespaces. A namespace
is made for the test and removed. KubeRay's operator need not run: nothing waits for pods.
"""

import os
import subprocess
import uuid
from pathlib import Path

import pytest

from orchestrator.cli.main import main
from orchestrator.kubernetes.api import KubernetesApi
from orchestrator.kubernetes.kinds import RAY_CLUSTER
from orchestrator.kubernetes.resize import grow, read_cluster, shrink
from tests.k8s.desk import MESH

KUBECONFIG = os.environ.get("EXPERTMESH_TEST_KUBECONFIG", "")
pytestmark = pytest.mark.skipif(
    not KUBECONFIG, reason="EXPERTMESH_TEST_KUBECONFIG: a cluster with KubeRay's CRDs"
)


@pytest.fixture
def namespace():
    name = f"expertmesh-test-{uuid.uuid4().hex[:8]}"
    kubectl = ["kubectl", "--kubeconfig", KUBECONFIG]
    subprocess.run([*kubectl, "create", "namespace", name], check=True)
    yield name
    subprocess.run([*kubectl, "delete", "namespace", name, "--wait=false"], check=True)


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        main(["k8s", *arguments, "--kubeconfig", KUBECONFIG])
    out, err = capsys.readouterr()
    return ended.value.code or 0, out, err


def test_every_verb(namespace, tmp_path, capsys):
    config = tmp_path / "mesh.yaml"
    config.write_text(MESH.replace("null}", f"null, namespace: {namespace}}}"))
    assert run(capsys, "diff", str(config))[0] == 1
    code, out, err = run(capsys, "apply", str(config), "--dry-run")
    assert (code, err) == (0, "")
    code, out, err = run(capsys, "apply", str(config))
    assert (code, err) == (0, "")
    assert "created: RayCluster/chat" in out
    assert run(capsys, "diff", str(config)) == (0, "", "")
    assert "unchanged" in run(capsys, "apply", str(config))[1]
    assert "cpu" in run(capsys, "status", str(config))[1]

    api = KubernetesApi.connect(Path(KUBECONFIG))
    grow(api, namespace, "chat", "cpu", 6)
    shrink(api, namespace, "chat", "cpu", ["chat-cpu-of-nobody"])
    group = read_cluster(api, namespace, "chat")["spec"]["workerGroupSpecs"][1]
    assert (group["replicas"], group["maxReplicas"]) == (5, 8)
    assert group["scaleStrategy"] == {"workersToDelete": ["chat-cpu-of-nobody"]}
    assert "cpu keeps 5 pods" in run(capsys, "apply", str(config))[1]

    assert run(capsys, "delete", str(config), "--volumes", "--timeout", "60")[0] == 0
    assert api.get(RAY_CLUSTER, namespace, "chat") is None
