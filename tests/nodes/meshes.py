"""A mesh on the nodes of a cluster: the demo model, whose greedy text has few near-ties."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

from benchmarks.correctness import DEMO
from tests.e2e.mesh_process import MeshProcess
from tests.nodes.cluster import Cluster
from tests.nodes.network import Node

MODEL = "demo"
EVERY_EXPERT = "16MiB"
"""Memory of a shard that holds all 256 experts of 51 KiB."""
PORT = 8000
ONE_EACH: Mapping[str, int] = MappingProxyType({})


def config_on(
    cluster: Cluster,
    name: str,
    nodes: Sequence[Node],
    shards: Mapping[str, int] = ONE_EACH,
    **placement: Any,
) -> dict[str, Any]:
    """A shard with every expert on each of `nodes`; endpoint, controller and engine on the head.
    shards: of nodes that have more than one."""
    return {
        "mesh": {"name": name},
        "model": {"path": str(DEMO / "checkpoint"), "served_name": MODEL},
        "engines": {
            "resources": {cluster.head.name: 1},
            "vllm": {"max_num_seqs": 16, "max_num_batched_tokens": 512},
        },
        "pools": {
            node.name: {
                "vendor": "cpu",
                "memory": EVERY_EXPERT,
                "shards": shards.get(node.name, 1),
                "speed": 1.0,
                "resources": {node.name: 1},
            }
            for node in nodes
        },
        "placement": placement,
        "gateway": {"host": cluster.head.address, "port": PORT, "route_prefix": f"/{name}"},
        "cluster": {"ray_address": cluster.address, "temp_dir": str(cluster.folder)},
    }


@contextmanager
def mesh_on(
    cluster: Cluster,
    name: str,
    nodes: Sequence[Node],
    shards: Mapping[str, int] = ONE_EACH,
    **placement: Any,
) -> Iterator[MeshProcess]:
    """A ready mesh, killed at the end unless it was stopped before; `config_on` says what it is."""
    config = config_on(cluster, name, nodes, shards, **placement)
    with MeshProcess(config, cluster.head.prefix, cluster.variables) as mesh:
        mesh.wait_for("ready at")
        yield mesh
