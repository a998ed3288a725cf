"""Three nodes with a Ray cluster, and a mesh with a shard on each that holds every expert."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.mesh_process import MeshProcess
from tests.nodes.cluster import Cluster
from tests.nodes.meshes import mesh_on
from tests.nodes.network import Network, why_not

NODES = 3


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    if reason := why_not():
        pytest.skip(reason)
    # Short, because Unix sockets lie below it.
    with tempfile.TemporaryDirectory(prefix="n") as folder, Network(NODES, Path(folder)) as network:
        yield network


@pytest.fixture(scope="module")
def cluster(network: Network, tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    return Cluster(network, tmp_path_factory.mktemp("raylets"))


@pytest.fixture(scope="module")
def mesh(cluster: Cluster) -> Iterator[MeshProcess]:
    with mesh_on(cluster, "three", cluster.nodes) as mesh:
        yield mesh
