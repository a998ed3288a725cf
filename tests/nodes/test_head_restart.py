"""The head node is lost and comes back. A Redis on another node keeps Ray's tables, so shards and
engines live on, and the mesh serves again without anybody doing anything."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.mesh_process import MeshProcess, wait_until
from tests.nodes.cluster import Cluster
from tests.nodes.meshes import MODEL, config_on
from tests.nodes.network import Network, why_not
from tests.nodes.redis import Redis, why_no_redis

pytestmark = [pytest.mark.nodes, pytest.mark.ray, pytest.mark.vllm, pytest.mark.timeout(900)]

BACK_TIMEOUT_S = 240.0


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """The head node and one for the work, where Redis is too."""
    if reason := why_not() or why_no_redis():
        pytest.skip(reason)
    with tempfile.TemporaryDirectory(prefix="n") as folder, Network(2, Path(folder)) as network:
        tables = Redis(network.nodes[1])
        yield Cluster(network, tmp_path_factory.mktemp("raylets"), tables)


@pytest.fixture(scope="module")
def mesh(cluster: Cluster) -> Iterator[MeshProcess]:
    """Engine and shard on the other node."""
    worker = cluster.nodes[1]
    config = config_on(cluster, "again", [worker])
    config["engines"]["resources"] = {worker.name: 1}
    with MeshProcess(config, cluster.head.prefix, cluster.variables) as mesh:
        mesh.wait_for("ready at")
        yield mesh


def ask(cluster: Cluster, mesh: MeshProcess, path: str, **options: Any) -> httpx.Response | None:
    """None: nobody listens."""
    method = "POST" if options else "GET"

    def call() -> httpx.Response:
        return httpx.request(method, mesh.url + path, timeout=60, trust_env=False, **options)

    try:
        answer: httpx.Response = cluster.head.call(call)
    except httpx.TransportError:
        return None
    return answer


def text(cluster: Cluster, mesh: MeshProcess) -> str | None:
    """A completion; None: it failed."""
    body = {"model": MODEL, "prompt": "And Jesus said", "max_tokens": 24, "temperature": 0}
    answer = ask(cluster, mesh, "/v1/completions", json=body)
    ok = answer is not None and answer.status_code == 200
    return answer.json()["choices"][0]["text"] if ok and answer is not None else None


def pids(cluster: Cluster, mesh: MeshProcess) -> dict[str, int]:
    answer = ask(cluster, mesh, "/api/v1/status")
    if answer is None or answer.status_code != 200:
        return {}
    return {c["id"]: c["pid"] for c in answer.json()["components"] if c["state"] == "ready"}


def test_shards_and_engines_outlive_the_head_node(cluster: Cluster, mesh: MeshProcess) -> None:
    before, said = pids(cluster, mesh), text(cluster, mesh)
    assert said
    cluster.restart_head()
    wait_until(lambda: text(cluster, mesh) == said, BACK_TIMEOUT_S, "it serves again")
    wait_until(lambda: "node1-0" in pids(cluster, mesh), BACK_TIMEOUT_S, "the controller is back")
    after = pids(cluster, mesh)
    for id in ("engine-0", "node1-0"):
        assert after[id] == before[id], "the same process as before"
    for id in ("controller", "gateway"):
        assert after[id] != before[id], "it was on the head node"
