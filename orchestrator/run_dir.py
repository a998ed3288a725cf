"""The private folder of one running mesh: sockets, Ray's session, logs.

Short, because a Unix socket's path has 107 bytes and Ray's own sockets live in it too.
"""

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class RunDir:
    """path: mode 0700, owned by this mesh alone."""

    path: Path

    @classmethod
    def create(cls, parent: Path | None = None) -> "RunDir":
        """A new folder below `parent` (default: the system's temporary folder)."""
        return cls(Path(tempfile.mkdtemp(prefix="xmesh-", dir=parent)))

    @property
    def ray(self) -> Path:
        """Ray's temporary folder; its logs are in `ray/session_latest/logs`."""
        return self.path / "ray"

    @property
    def logs(self) -> Path:
        return self.ray / "session_latest" / "logs"

    def socket(self, component: str) -> str:
        """Address of a component's Unix socket."""
        return f"unix:{self.path}/s/{component}"

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
