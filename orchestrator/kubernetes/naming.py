"""Names, labels and ports that the objects of one mesh share."""

from typing import Any

from actors.wire.ports import parse_ports
from orchestrator.config.schema import MeshConfig
from orchestrator.errors import UserError

Object = dict[str, Any]
"""A Kubernetes object as JSON values."""

MANAGER = "expertmesh"
"""Field manager of server-side apply, and value of `app.kubernetes.io/managed-by`."""
INSTANCE = "app.kubernetes.io/instance"
PART = "app.kubernetes.io/component"
POOL = "expertmesh.io/pool"
CONFIG_HASH = "expertmesh.io/config-hash"
"""Annotation: the config that the mesh was started with."""

CLUSTER_LABEL = "ray.io/cluster"
GROUP_LABEL = "ray.io/group"
NODE_TYPE_LABEL = "ray.io/node-type"

MAX_NAME = 40
"""KubeRay makes names of pods and services from the cluster's, of 63 characters at most."""
DEFAULT_PORTS = "21000-21099"
GATEWAY_PORT_NAME = "http"

GCS_PORT = 6379
DASHBOARD_PORT = 8265
METRICS_PORT = 8080
AGENT_PORT = 52365
RAY_PORTS = {
    "node-manager-port": 20001,
    "object-manager-port": 20002,
    "runtime-env-agent-port": 20003,
    "dashboard-agent-grpc-port": 20004,
    "min-worker-port": 20100,
    "max-worker-port": 20999,
}
"""`ray start` would take any; a network policy has to know them."""


def name_of(config: MeshConfig) -> str:
    """Name of the mesh's main objects.

    Raises:
        UserError: it is none that KubeRay takes.
    """
    name = config.mesh.name
    if len(name) > MAX_NAME or not name[0].isalpha():
        raise UserError(
            f"mesh.name {name} is no name for a RayCluster",
            f"begin it with a letter and use at most {MAX_NAME} characters",
        )
    return name


def labels(config: MeshConfig, part: str = "") -> dict[str, str]:
    made = {
        "app.kubernetes.io/name": "expertmesh",
        INSTANCE: config.mesh.name,
        "app.kubernetes.io/managed-by": MANAGER,
    }
    return made | ({PART: part} if part else {})


def pods_of(config: MeshConfig, part: str = "") -> dict[str, str]:
    """Labels that select the mesh's pods."""
    return {INSTANCE: config.mesh.name} | ({PART: part} if part else {})


def metadata(config: MeshConfig, name: str, **more: Any) -> Object:
    return {
        "name": name,
        "namespace": config.kubernetes.namespace,
        "labels": labels(config),
        **more,
    }


def mesh_ports(config: MeshConfig) -> range:
    """Ports of shards, routers and the controller's directory."""
    return parse_ports(config.cluster.ports or DEFAULT_PORTS)


def keys_secret(config: MeshConfig) -> str:
    return config.kubernetes.keys_secret or f"{config.mesh.name}-keys"


def config_map(config: MeshConfig) -> str:
    return f"{name_of(config)}-config"


def state_claim(config: MeshConfig) -> str:
    return f"{name_of(config)}-state"
