"""The folder of what outlives a mesh's processes."""

import os
from pathlib import Path

from orchestrator.config.schema import ClusterConfig


def state_dir(cluster: ClusterConfig) -> Path:
    """`cluster.state_dir`, or its default by the XDG base directory rules. May not exist yet."""
    if cluster.state_dir is not None:
        return cluster.state_dir
    base = os.environ.get("XDG_STATE_HOME", "")
    home = Path(base) if os.path.isabs(base) else Path.home() / ".local" / "state"
    return home / "expertmesh"
