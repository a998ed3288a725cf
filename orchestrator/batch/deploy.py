"""What a mesh's config comes to for batch jobs."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from orchestrator.batch.settings import BatchSettings
from orchestrator.config.schema import MeshConfig
from orchestrator.gateway.auth import digest


def batch_settings(
    config: MeshConfig, state_dir: Path, key_names: Mapping[str, str]
) -> BatchSettings | None:
    """state_dir: of all meshes of this user; key_names: API key -> the name it stands for. None
    where batch jobs are turned off."""
    if not config.batch.enabled:
        return None
    return BatchSettings(
        config=config.batch,
        folder=state_dir / f"{config.mesh.name}-batch",
        model_name=config.model.name,
        max_line_bytes=config.gateway.max_request_body,
        key_names={digest(key).hex(): name for key, name in key_names.items()},
    )


def split_name(key: str) -> tuple[str | None, str]:
    """(name, key) of an entry of EXPERTMESH_API_KEYS, which may be `name:key`."""
    name, colon, rest = key.partition(":")
    return (name, rest) if colon and name and rest else (None, key)


def named_keys(entries: Iterable[str]) -> dict[str, str]:
    """API key -> name, for the entries that have one."""
    split = map(split_name, entries)
    return {key: name for name, key in split if name is not None}
