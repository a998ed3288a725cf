"""The config that the mesh is started with inside the cluster, and the ConfigMap that holds it."""

import hashlib
import json
from pathlib import Path
from typing import Any

import yaml

from orchestrator.config.kubernetes import ENGINE_GROUP
from orchestrator.config.schema import MeshConfig
from orchestrator.errors import UserError
from orchestrator.kubernetes.device_names import names_for
from orchestrator.kubernetes.naming import DEFAULT_PORTS, Object, config_map, metadata, name_of
from orchestrator.kubernetes.yaml_text import WIDTH

CONFIG_FOLDER = "/etc/expertmesh"
CONFIG_FILE = "mesh.yaml"
STATE_FOLDER = "/state"
OPEN_HOST = "0.0.0.0"
ROOM_TIMEOUT_S = 1800.0
"""A pod may have to wait for a node and for its image."""


def room(group: str) -> str:
    """Ray resource of which each shard of a pool (or each engine) asks for one. Only pods of that
    group offer it, so nothing else is put there."""
    return f"expertmesh-{group}"


def in_cluster(config: MeshConfig) -> MeshConfig:
    """What `expertmesh serve` gets there: paths of the containers, the cluster's Ray, fixed ports.

    Raises:
        UserError: something that pods cannot have.
    """
    if config.router.tls_certificate is not None:
        raise UserError(
            "router.tls_certificate names a file that pods do not have",
            "leave it out: each process then makes a certificate of its own",
        )
    said = config.model_dump(mode="json", exclude_unset=True)
    said.pop("kubernetes", None)
    said["model"] |= {"path": config.kubernetes.model_path, "served_name": config.model.name}
    said["gateway"] = said.get("gateway", {}) | {"host": OPEN_HOST, "port": config.gateway.port}
    cluster = {"room_timeout_s": ROOM_TIMEOUT_S} | said.get("cluster", {})
    cluster.pop("temp_dir", None)
    ports = config.cluster.ports or DEFAULT_PORTS
    said["cluster"] = cluster | {
        "ray_address": "auto",
        "state_dir": STATE_FOLDER,
        "ports": ports,
        "take_over": True,
        "head_host": f"{name_of(config)}-head-svc",  # KubeRay's Service
    }
    said["engines"] = said.get("engines", {}) | {
        "resources": config.engines.resources | {room(ENGINE_GROUP): 1}
    }
    for name, pool in config.pools.items():
        said["pools"][name]["resources"] = _resources(config, name)
        if pool.checkpoint is not None:
            said["pools"][name]["checkpoint"] = _in_pods(config, name, pool.checkpoint)
    return MeshConfig.model_validate(said)


def _in_pods(config: MeshConfig, pool: str, checkpoint: Path) -> str:
    """Where a pool's own checkpoint lies in the containers, which mount one volume for models."""
    mounted, here = Path(config.kubernetes.model_path), config.model.path
    if checkpoint.is_relative_to(here):
        return str(mounted / checkpoint.relative_to(here))
    if checkpoint.is_relative_to(mounted):
        return str(checkpoint)
    raise UserError(
        f"pools.{pool}.checkpoint {checkpoint} is a folder that pods do not have",
        f"put it into a folder below model.path, or give its path below {mounted}",
    )


def _resources(config: MeshConfig, pool: str) -> dict[str, float]:
    """What a shard asks for: what the config says, its device, and room in a pod of its pool."""
    device = names_for(config, pool)
    own = {device.ray: 1.0} if device.kubernetes else {}
    return own | config.pools[pool].resources | {room(pool): 1.0}


def config_objects(config: MeshConfig) -> list[Object]:
    """config: as the user wrote it."""
    return [
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": metadata(config, config_map(config)),
            "data": {CONFIG_FILE: config_text(in_cluster(config))},
        }
    ]


def config_text(inside: MeshConfig) -> str:
    return yaml.safe_dump(_said(inside), sort_keys=False, width=WIDTH)


def config_hash(inside: MeshConfig) -> str:
    """Changes when what the mesh is started with does."""
    return hashlib.sha256(json.dumps(_said(inside), sort_keys=True).encode()).hexdigest()[:16]


def _said(inside: MeshConfig) -> dict[str, Any]:
    said: dict[str, Any] = _whole(inside.model_dump(mode="json", exclude_unset=True))
    return said


def _whole(value: Any) -> Any:
    """Whole numbers as people write them: 1, not 1.0."""
    if isinstance(value, dict):
        return {key: _whole(item) for key, item in value.items()}
    return int(value) if isinstance(value, float) and value == int(value) else value
