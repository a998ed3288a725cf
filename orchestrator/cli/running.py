"""Which meshes this user's `expertmesh serve` commands run on this machine.

Each command keeps a small file while it runs. A file whose process is gone, or whose process id now
belongs to another one, is removed by whoever reads it.
"""

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from pydantic import BaseModel, ConfigDict, ValidationError

from orchestrator.errors import UserError

SAME_PROCESS_S = 1.0
"""How far two readings of one process's start may be apart."""


class RunningMesh(BaseModel):
    """One command. began_s: Unix time of its process's start; url: empty until it serves."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    mesh: str
    pid: int
    began_s: float
    url: str = ""
    log: str = ""
    """File with its output; empty where that goes to a terminal."""

    @property
    def alive(self) -> bool:
        try:
            process = psutil.Process(self.pid)
            if process.status() == psutil.STATUS_ZOMBIE:
                return False
            return abs(process.create_time() - self.began_s) < SAME_PROCESS_S
        except psutil.NoSuchProcess:
            return False


def user_folder() -> Path:
    """`expertmesh` below `$XDG_STATE_HOME` or `~/.local/state`."""
    base = os.environ.get("XDG_STATE_HOME", "")
    home = Path(base) if os.path.isabs(base) else Path.home() / ".local" / "state"
    return home / "expertmesh"


def running() -> list[RunningMesh]:
    """Those that live, by name."""
    found = []
    for path in sorted((user_folder() / "running").glob("*.json")):
        try:
            mesh = RunningMesh.model_validate_json(path.read_text())
        except (OSError, ValidationError):
            continue  # just being removed, or not ours
        if mesh.alive:
            found.append(mesh)
        else:
            with contextlib.suppress(OSError):
                path.unlink()
    return sorted(found, key=lambda mesh: (mesh.mesh, mesh.pid))


def find(name: str | None) -> RunningMesh:
    """The mesh of that name, or the only one.

    Raises:
        UserError: there is none, or more than one.
    """
    meshes = running()
    fitting = [mesh for mesh in meshes if name in (None, mesh.mesh)]
    if len(fitting) == 1:
        return fitting[0]
    names = ", ".join(f"{mesh.mesh} (process {mesh.pid})" for mesh in fitting or meshes)
    if not meshes:
        raise UserError("no mesh runs here", "start one with `expertmesh serve --detach`")
    if not fitting:
        raise UserError(f"no mesh named {name} runs here", f"there are {names}")
    fix = "name one of them" if name is None else "end one of them by its process id"
    raise UserError(f"several meshes run here: {names}", fix)


class Entry:
    """The file of this process."""

    def __init__(self, path: Path, mesh: RunningMesh) -> None:
        self._path = path
        self._mesh = mesh
        self._write()

    def ready(self, url: str) -> None:
        self._mesh = self._mesh.model_copy(update={"url": url})
        self._write()

    def _write(self) -> None:
        # A mesh serves where this cannot be written too; it is only not listed then.
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            new = self._path.with_suffix(".new")
            new.write_text(self._mesh.model_dump_json())
            new.replace(self._path)

    def remove(self) -> None:
        with contextlib.suppress(OSError):
            self._path.unlink()


@contextmanager
def entry(mesh: str, log: str = "") -> Iterator[Entry]:
    """List this process as one that runs `mesh`, for as long as the block lasts."""
    pid = os.getpid()
    began_s = psutil.Process(pid).create_time()
    path = user_folder() / "running" / f"{mesh}-{pid}.json"
    kept = Entry(path, RunningMesh(mesh=mesh, pid=pid, began_s=began_s, log=log))
    try:
        yield kept
    finally:
        kept.remove()
