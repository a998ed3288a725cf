"""The config and the Ray resources that are rendered make a mesh that serves.

There is no Kubernetes here: a Ray node offers what the groups' pods offer, as KubeRay would start
it, and `expertmesh serve` gets the config of the ConfigMap. Paths, addresses and the address of Ray
are this machine's.
"""

import json
import signal
import subprocess
import sys
import tempfile
from collections import Counter

import psutil
import pytest
import ray
import yaml

from orchestrator.config.load import default_config_path
from orchestrator.kubernetes.pods import RAY_ENVIRONMENT as OF_PODS
from tests.e2e.mesh_process import MeshProcess, environment, wait_until
from tests.e2e.test_shared_cluster import START_TIMEOUT_S, STOP_TIMEOUT_S, answers
from tests.k8s.meshes import one, overlay
from tests.orchestrator.gateway.ray_fakes import free_port
from tests.processes import living

pytestmark = [pytest.mark.e2e, pytest.mark.ray, pytest.mark.vllm, pytest.mark.long]

NAME = "cpu-demo"


def offered():
    """What the pods of all groups offer to Ray together."""
    total = Counter()
    for group in one(overlay(NAME), "RayCluster")["spec"]["workerGroupSpecs"]:
        for name, amount in group["resources"].items():
            total[name] += float(amount) * group["replicas"]
    return dict(total)


@pytest.fixture
def head():
    port, resources = free_port(), offered()
    cpus = resources.pop("CPU")
    with tempfile.TemporaryDirectory(
        prefix="ray", dir="/tmp", ignore_cleanup_errors=True
    ) as folder:
        started = subprocess.Popen(
            [
                *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"),
                *(f"--port={port}", f"--temp-dir={folder}", f"--num-cpus={cpus:g}"),
                *("--include-dashboard=false", "--object-store-memory=100000000"),
                *("--disable-usage-stats", f"--resources={json.dumps(resources)}"),
            ],
            env=environment(RAY_AUTH_MODE="disabled", **OF_PODS),
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            wait_until(lambda: answers(port), START_TIMEOUT_S, "a Ray head node")
            yield f"127.0.0.1:{port}"
        finally:
            family = [
                psutil.Process(started.pid),
                *psutil.Process(started.pid).children(recursive=True),
            ]
            started.terminate()
            try:
                started.wait(STOP_TIMEOUT_S)
            finally:
                for process in living(family):
                    process.kill()


def test_the_demo_serves_as_rendered(head, tmp_path):
    rendered = yaml.safe_load(
        one(overlay(NAME), "ConfigMap", "expertmesh-config")["data"]["mesh.yaml"]
    )
    rendered["model"]["path"] = str(default_config_path().parent / "checkpoint")
    rendered["gateway"] = {"host": "127.0.0.1", "port": free_port()}
    rendered["cluster"] |= {
        "ray_address": head,
        "state_dir": str(tmp_path),
        # No name leads to the address that Ray gives this machine.
        "head_host": ray.util.get_node_ip_address(),
        "room_timeout_s": 10,
    }
    with MeshProcess(rendered) as mesh:
        mesh.wait_for("ready at")
        assert mesh.complete(model="demo")
        view = mesh.get("/api/v1/cluster").json()
        assert {p["pool"] for p in view["places"]} == {"engine", *overlay(NAME).pools}
        assert _mesh_ports() >= {21000, 21001, 21002, 21003, 21004}
        mesh.signal(signal.SIGTERM)
        assert mesh.wait() == 0, mesh.transcript
        assert mesh.left_over() == []


def _mesh_ports():
    """Ports of the range of a mesh's own that somebody on this machine listens on."""
    listening = {c.laddr.port for c in psutil.net_connections("tcp") if c.status == "LISTEN"}
    return {port for port in listening if 21000 <= port <= 21099}
