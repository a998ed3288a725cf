"""`examples/observability/run.sh` against a gateway: Prometheus scrapes it and knows the rules."""

import os
import shutil
import signal
import subprocess
from pathlib import Path

import httpx
import pytest

from tests.dashboards.moving_mesh import free_port, moving_mesh, served
from tests.processes import wait_until

RUN = Path(__file__).parents[2] / "examples" / "observability" / "run.sh"


@pytest.mark.long
@pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="no Prometheus here: apt-get install prometheus"
)
def test_one_command_starts_prometheus_and_leaves_nothing(tmp_path):
    port = free_port()
    with served(moving_mesh()) as url:
        environment = {
            **os.environ,
            "EXPERTMESH_URL": url,
            "PROMETHEUS_PORT": str(port),
            "GRAFANA_PORT": str(free_port()),
            "TMPDIR": str(tmp_path),
        }
        process = subprocess.Popen([RUN], env=environment, stdout=subprocess.PIPE, text=True)
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as prometheus:

            def ask(path, **query):
                try:
                    return prometheus.get(path, params=query).json()["data"]
                except (httpx.HTTPError, ValueError):  # it is still starting
                    return None

            def scraped():
                found = ask("/api/v1/query", query="expertmesh_balancedness")
                return bool(found and found["result"])

            try:
                wait_until(scraped, timeout_s=90)
                groups = ask("/api/v1/rules")["groups"]
                names = {rule["name"] for group in groups for rule in group["rules"]}
            finally:
                process.send_signal(signal.SIGTERM)
                process.wait(timeout=30)
    assert {"ExpertMeshImbalance", "ExpertMeshNotReady"} <= names
    assert list(tmp_path.iterdir()) == []


def test_without_a_mesh_it_says_so():
    environment = {**os.environ, "EXPERTMESH_URL": f"http://127.0.0.1:{free_port()}"}
    done = subprocess.run([RUN], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "prometheus" in done.stderr or "no mesh answers at" in done.stderr
