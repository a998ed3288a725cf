"""A mesh on three nodes, each with every expert: it serves, and loses nodes but no request.

The tests are one story and run in this order: the last ones take nodes away.
"""

import signal
import time
from collections.abc import Callable

import httpx
import pytest

from tests.e2e.mesh_process import MeshProcess
from tests.nodes.cluster import Cluster
from tests.nodes.streams import PROMPTS, Stream, streaming

pytestmark = [pytest.mark.nodes, pytest.mark.ray, pytest.mark.vllm, pytest.mark.timeout(900)]

TOKENS = 160
LARGEST_GAP_S = 3.0
"""Of streams while a node is lost. Measured on a quiet machine: see benchmarks/failover.py, whose
goal is half a second; tests share their cores."""


def status(cluster: Cluster, mesh: MeshProcess) -> dict:
    found: dict = cluster.head.call(
        lambda: httpx.get(f"{mesh.url}/api/v1/status", timeout=30, trust_env=False).json()
    )
    return found


@pytest.fixture(scope="module")
def undisturbed(cluster: Cluster, mesh: MeshProcess) -> list[str]:
    """The text of every stream while nothing happens."""
    with streaming(mesh.url, PROMPTS, TOKENS, cluster.head) as streams:
        pass
    assert [stream.error for stream in streams] == [""] * len(PROMPTS)
    return [stream.text for stream in streams]


def check_nothing_lost(streams: list[Stream], since_s: float, undisturbed: list[str]) -> None:
    assert [stream.error for stream in streams] == [""] * len(PROMPTS)
    assert [stream.text for stream in streams] == undisturbed
    assert max(stream.gap_s(since_s) for stream in streams) < LARGEST_GAP_S


def test_every_node_has_a_shard_and_the_head_the_rest(cluster: Cluster, mesh: MeshProcess) -> None:
    where = {c["id"]: c["node"] for c in status(cluster, mesh)["components"]}
    assert where == {
        "controller": "node0",
        "engine-0": "node0",
        "gateway": "node0",
        "node0-0": "node0",
        "node1-0": "node1",
        "node2-0": "node2",
    }


def test_a_slow_cable_changes_no_text(
    cluster: Cluster, mesh: MeshProcess, undisturbed: list[str]
) -> None:
    cluster.nodes[2].limit("8mbit")
    try:
        with streaming(mesh.url, PROMPTS, TOKENS, cluster.head) as streams:
            pass
    finally:
        cluster.nodes[2].limit(None)
    assert [stream.error for stream in streams] == [""] * len(PROMPTS)
    assert [stream.text for stream in streams] == undisturbed


def disturbed(
    cluster: Cluster, mesh: MeshProcess, disturb: Callable[[], None]
) -> tuple[list[Stream], float]:
    """Streams under which `disturb` was called, and when."""
    with streaming(mesh.url, PROMPTS, TOKENS, cluster.head) as streams:
        since_s = time.monotonic()
        disturb()
    return streams, since_s


def wait_for_nothing() -> None:
    """Disturbs nothing."""


def test_a_pulled_cable_loses_no_request(
    cluster: Cluster, mesh: MeshProcess, undisturbed: list[str]
) -> None:
    streams, since_s = disturbed(cluster, mesh, cluster.nodes[2].pull)
    try:
        check_nothing_lost(streams, since_s, undisturbed)
        # The node stays away: nobody waits for it any more.
        check_nothing_lost(*disturbed(cluster, mesh, wait_for_nothing), undisturbed)
    finally:
        cluster.nodes[2].plug()


def test_a_killed_node_loses_no_request(
    cluster: Cluster, mesh: MeshProcess, undisturbed: list[str]
) -> None:
    streams, since_s = disturbed(cluster, mesh, cluster.nodes[1].kill)
    check_nothing_lost(streams, since_s, undisturbed)


def test_the_rest_stops_and_leaves_nothing_on_living_nodes(
    cluster: Cluster, mesh: MeshProcess
) -> None:
    mesh.signal(signal.SIGTERM)
    assert mesh.wait() == 0, mesh.transcript
    for node in (cluster.nodes[0], cluster.nodes[2]):
        assert node.files(cluster.folder) == ["ray"]
