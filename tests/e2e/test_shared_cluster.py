"""Meshes in a Ray cluster that is there already: refused where they do not fit, gone at the end."""

import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from orchestrator.session.ray_session import RAY_ENVIRONMENT
from orchestrator.status import ComponentKind
from tests.e2e.mesh_process import MeshProcess, environment, mesh_config, wait_until
from tests.orchestrator.gateway.ray_fakes import free_port
from tests.processes import living

pytestmark = [pytest.mark.e2e, pytest.mark.ray, pytest.mark.long]

CPUS = 12
START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 120.0
"""Ray gives what runs there 30 s before it ends a node."""


@contextmanager
def ray_head() -> Iterator[str]:
    """Address of a Ray head node of one's own."""
    port = free_port()
    with tempfile.TemporaryDirectory(
        prefix="ray", dir="/tmp", ignore_cleanup_errors=True
    ) as folder:
        command = [
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"),
            *(f"--port={port}", f"--temp-dir={folder}", f"--num-cpus={CPUS}"),
            *("--include-dashboard=false", "--object-store-memory=100000000"),
            "--disable-usage-stats",
        ]
        variables = environment(RAY_AUTH_MODE="disabled", **RAY_ENVIRONMENT)
        ray = subprocess.Popen(
            command, env=variables, stdout=subprocess.DEVNULL, start_new_session=True
        )
        try:
            wait_until(lambda: answers(port), START_TIMEOUT_S, "a Ray head node")
            yield f"127.0.0.1:{port}"
        finally:
            family = [psutil.Process(ray.pid), *psutil.Process(ray.pid).children(recursive=True)]
            ray.terminate()
            try:
                ray.wait(STOP_TIMEOUT_S)
            finally:
                for process in living(family):
                    process.kill()


@pytest.fixture(scope="module")
def head() -> Iterator[str]:
    """Of this module."""
    with ray_head() as address:
        yield address


def answers(port: int) -> bool:
    from orchestrator.config.schema import ClusterConfig
    from orchestrator.preflight.network import check_ray

    return check_ray(ClusterConfig(ray_address=f"127.0.0.1:{port}"), {}).ok


def config(model: Path, name: str, head: str, **sections: Any) -> dict[str, Any]:
    return mesh_config(model, name, cluster={"ray_address": head}, **sections)


@pytest.mark.parametrize(
    ("change", "asked"),
    [
        ({"resources": {"NPU": 2}}, "pools.ascend asks for 1 x (CPU 1, NPU 2)"),
        ({"threads": 64}, "pools.ascend asks for 1 x (CPU 64)"),
    ],
)
def test_what_no_node_has_is_told(
    tiny_model: Path, head: str, change: dict[str, Any], asked: str
) -> None:
    wanted = config(tiny_model, "greedy", head)
    wanted["pools"]["ascend"] |= change
    with MeshProcess(wanted) as mesh:
        assert mesh.wait() == 2, mesh.transcript
        assert not mesh.said("Start expert shards")
        line = mesh.err[-1]
        assert asked in line
        assert f"CPU {CPUS}" in line
        assert mesh.left_over() == []


def test_what_is_not_free_is_told(tiny_model: Path, head: str) -> None:
    """Each pool fits by itself, and the two do not fit together."""
    wanted = config(tiny_model, "crowd", head)
    for pool in wanted["pools"].values():
        pool["threads"] = CPUS - 2
    with MeshProcess(wanted) as mesh:
        assert mesh.wait() == 2, mesh.transcript
        line = mesh.err[-1]
        assert f"asks for 1 x (CPU {CPUS - 2})" in line
        assert "(they have free " in line
        logs = Path(line.rpartition(" logs are in ")[2].removesuffix(" of each node\n"))
        assert list(logs.glob("worker-*.err"))
        assert mesh.left_over() == []


@pytest.mark.vllm
def test_two_meshes_share_an_endpoint(tiny_model: Path, head: str) -> None:
    gateway = {"port": free_port(), "route_prefix": "/first"}
    with MeshProcess(config(tiny_model, "first", head, gateway=gateway)) as first:
        first.wait_for("ready at")
        assert first.url.endswith("/first")
        before = first.complete()
        with MeshProcess(config(tiny_model, "second", head, gateway=gateway)) as second:
            assert second.wait() == 2, second.transcript
            assert "belongs to the Serve application expertmesh-first" in second.err[-1]
            assert second.left_over() == []
        assert first.complete() == before
        assert first.get("/health").status_code == 200
        first.signal(signal.SIGTERM)
        assert first.wait() == 0, first.transcript
        assert first.err == []
        assert first.left_over() == []
        with pytest.raises(httpx.ConnectError):
            first.get("/health")


@pytest.mark.vllm
@pytest.mark.long
def test_a_mesh_whose_command_was_killed_is_taken_over(tiny_model: Path, head: str) -> None:
    gateway = {"port": free_port(), "route_prefix": "/third"}
    cluster = {"ray_address": head, "take_over": True}
    asked = mesh_config(tiny_model, "third", cluster=cluster, gateway=gateway)
    with MeshProcess(asked) as first:
        first.wait_for("ready at")
        before, engine = first.complete(), first.component(ComponentKind.ENGINE)["pid"]
        first.signal(signal.SIGKILL)
        first.wait()
        with MeshProcess(asked) as second:
            second.wait_for("ready at")
            assert second.complete() == before
            assert second.component(ComponentKind.ENGINE)["pid"] == engine, "it was not started"
            second.signal(signal.SIGTERM)
            assert second.wait() == 0, second.transcript
            with pytest.raises(httpx.ConnectError):
                second.get("/health")
