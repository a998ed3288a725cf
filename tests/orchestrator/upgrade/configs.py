"""Configs of small meshes."""

from pathlib import Path
from typing import Any

from orchestrator.config.schema import MeshConfig

POOLS = {
    "cpu": {"vendor": "cpu", "memory": "8MiB", "shards": 4},
    "gpu": {"vendor": "nvidia", "emulated": True, "memory": "8MiB", "shards": 2},
}


def config(folder: Path = Path("/tmp"), **sections: Any) -> MeshConfig:
    """sections: in place of the usual ones; `pools` is merged, None leaves one out."""
    given = {
        "mesh": {"name": "sim"},
        "model": {"path": "/models/tiny", "served_name": "tiny"},
        "engines": {"replicas": 2},
        "cluster": {"state_dir": str(folder)},
        **sections,
    }
    pools = given.pop("pools", {})
    given["pools"] = {
        name: {**POOLS.get(name, {"vendor": "cpu"}), **pools.get(name, {})}
        for name in [*POOLS, *pools]
        if pools.get(name, {}) is not None
    }
    return MeshConfig.model_validate(given)
