"""RayCluster and RayJob of a mesh. Pure.

Why these and not a RayService: a RayService replaces its whole cluster when its config changes and
runs old and new side by side, which takes every device twice; it also removes Serve applications
that its own config does not list, and the mesh opens its gateway itself. A RayCluster stays as it
is, so its groups can be scaled, and the RayJob starts and stops the mesh in it.

The RayJob submits over HTTP: then no second pod waits beside the mesh, and KubeRay submits again
when a new head node does not know the job any more.
"""

from typing import Any

from actors.devices.detect import VENDOR_LABEL
from orchestrator.config.schema import MeshConfig
from orchestrator.kubernetes.groups import Group
from orchestrator.kubernetes.mesh_config import CONFIG_FILE, CONFIG_FOLDER, config_hash
from orchestrator.kubernetes.naming import (
    AGENT_PORT,
    CLUSTER_LABEL,
    CONFIG_HASH,
    METRICS_PORT,
    POOL,
    RAY_PORTS,
    Object,
    metadata,
    name_of,
)
from orchestrator.kubernetes.pods import head_template, worker_template

API_VERSION = "ray.io/v1"
RAY_VERSION = "2.60.0"
IDLE_TIMEOUT_S = 300
"""How long the autoscaler leaves a pod without shards."""


def ray_cluster(config: MeshConfig, groups: list[Group]) -> Object:
    settings = config.kubernetes
    spec: Object = {
        "rayVersion": RAY_VERSION,
        "authOptions": _auth(config),
        "enableInTreeAutoscaling": settings.autoscaler,
        "headGroupSpec": {
            "rayStartParams": _start_parameters() | {"dashboard-host": "0.0.0.0"},
            # Controller and gateway ask for no CPU; what asks for some belongs elsewhere.
            "resources": {"CPU": "0"},
            "template": head_template(config),
        },
        "workerGroupSpecs": [_worker_group(config, group) for group in groups],
    }
    if settings.autoscaler:
        spec["autoscalerOptions"] = _autoscaler()
    if settings.redis_address is not None:
        spec["gcsFaultToleranceOptions"] = _fault_tolerance(config)
    return {
        "apiVersion": API_VERSION,
        "kind": "RayCluster",
        "metadata": metadata(config, name_of(config)),
        "spec": spec,
    }


def ray_job(config: MeshConfig, inside: MeshConfig) -> Object:
    """Starts the mesh once every pod is ready; deleting it drains and stops the mesh."""
    changes = {"annotations": {CONFIG_HASH: config_hash(inside)}}
    return {
        "apiVersion": API_VERSION,
        "kind": "RayJob",
        "metadata": metadata(config, name_of(config), **changes),
        "spec": {
            "clusterSelector": {CLUSTER_LABEL: name_of(config)},
            "submissionMode": "HTTPMode",
            "entrypoint": f"expertmesh serve {CONFIG_FOLDER}/{CONFIG_FILE}",
            "shutdownAfterJobFinishes": False,
        },
    }


def _worker_group(config: MeshConfig, group: Group) -> Object:
    return {
        "groupName": group.name,
        "replicas": group.least,
        "minReplicas": group.least if config.kubernetes.autoscaler else 0,
        "maxReplicas": group.most,
        "rayStartParams": _start_parameters(),
        "resources": {name: f"{amount:g}" for name, amount in group.ray.items()},
        "labels": {POOL: group.name} | ({VENDOR_LABEL: group.vendor} if group.vendor else {}),
        "template": worker_template(config, group),
    }


def _start_parameters() -> dict[str, str]:
    ports = RAY_PORTS | {
        "metrics-export-port": METRICS_PORT,
        "dashboard-agent-listen-port": AGENT_PORT,
    }
    return {name: str(port) for name, port in ports.items()}


def _auth(config: MeshConfig) -> Object:
    """Everybody who asks Ray for anything shows a token."""
    secret = config.kubernetes.ray_token_secret
    return {"mode": "token"} | ({"secretName": secret} if secret else {})


def _autoscaler() -> Object:
    amounts = {"cpu": "500m", "memory": "1Gi"}
    return {
        "idleTimeoutSeconds": IDLE_TIMEOUT_S,
        "resources": {"requests": amounts, "limits": dict(amounts)},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        },
    }


def _fault_tolerance(config: MeshConfig) -> Object:
    settings = config.kubernetes
    made: dict[str, Any] = {"redisAddress": settings.redis_address}
    if settings.redis_secret is not None:
        reference = {"name": settings.redis_secret, "key": "password"}
        made["redisPassword"] = {"valueFrom": {"secretKeyRef": reference}}
    return made
