"""The meshes whose objects the tests look at."""

from functools import cache
from pathlib import Path
from typing import Any

import yaml

from orchestrator.config.load import load_config
from orchestrator.config.schema import MeshConfig
from orchestrator.kubernetes.render import render

MANIFESTS = Path(__file__).parents[2] / "manifests"
OVERLAYS = sorted(path.parent.name for path in MANIFESTS.glob("overlays/*/mesh.yaml"))
NVIDIA = """
mesh: {name: chat}
model: {path: /models/big}
engines: {replicas: 2, threads: 4, resources: {GPU: 2}}
pools:
  h200: {vendor: nvidia, device: cuda, shards: 4, spares: 1, max_shards: 8, threads: 2}
  host: {vendor: cpu, shards: 2, threads: 8, memory: 64GiB}
"""


@cache
def overlay(name: str) -> MeshConfig:
    return load_config(MANIFESTS / "overlays" / name / "mesh.yaml")


def config(text: str = NVIDIA, **kubernetes: Any) -> MeshConfig:
    """A config from YAML, with these keys under `kubernetes`."""
    said = yaml.safe_load(text)
    return MeshConfig.model_validate(said | {"kubernetes": kubernetes})


def objects(mesh: MeshConfig, kind: str) -> list[dict[str, Any]]:
    return [item for item in render(mesh) if item["kind"] == kind]


def one(mesh: MeshConfig, kind: str, name: str = "") -> dict[str, Any]:
    found = [o for o in objects(mesh, kind) if name in ("", o["metadata"]["name"])]
    assert len(found) == 1, [o["metadata"]["name"] for o in objects(mesh, kind)]
    return found[0]


def group(mesh: MeshConfig, name: str) -> dict[str, Any]:
    groups = one(mesh, "RayCluster")["spec"]["workerGroupSpecs"]
    return next(g for g in groups if g["groupName"] == name)


def container(holder: dict[str, Any]) -> dict[str, Any]:
    """The Ray container of a group."""
    return holder["template"]["spec"]["containers"][0]
