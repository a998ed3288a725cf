"""Where this user's caches are, from one start to the next."""

import os
import tempfile
from pathlib import Path


def cache_base() -> Path:
    """`$XDG_CACHE_HOME/expertmesh` or `~/.cache/expertmesh`; containers may have a user without a
    home and without a name."""
    if cache := os.environ.get("XDG_CACHE_HOME"):
        return Path(cache) / "expertmesh"
    try:
        return Path.home() / ".cache" / "expertmesh"
    except RuntimeError:
        return Path(tempfile.gettempdir()) / f"expertmesh-{os.geteuid()}"
