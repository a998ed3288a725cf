"""The private folder of one running mesh: sockets, Ray's session, logs.

Short, because a Unix socket's path has 107 bytes and Ray's own sockets live in it too.
"""

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from actors.listening import RUN_FOLDER_PREFIX
from orchestrator.errors import UserError

MAX_PARENT_BYTES = 24
"""What Ray's own socket names, at most 83 bytes below it, leave of the 107."""
SHORT_PARENT = Path("/tmp")


@dataclass(frozen=True, slots=True)
class RunDir:
    """path: mode 0700, owned by this mesh alone."""

    path: Path

    @classmethod
    def create(cls, parent: Path | None = None) -> "RunDir":
        """A new folder below `parent` (default: the system's temporary folder).

        Raises:
            UserError: `parent` is not a folder one can write to, or its path is too long.
        """
        if parent is None:
            parent = Path(tempfile.gettempdir())
            if len(bytes(parent)) > MAX_PARENT_BYTES:
                parent = SHORT_PARENT
        elif len(bytes(parent)) > MAX_PARENT_BYTES:
            raise UserError(
                f"cluster.temp_dir {parent} is too long for Unix sockets",
                f"choose a path of at most {MAX_PARENT_BYTES} bytes, or leave the key out",
            )
        try:
            return cls(Path(tempfile.mkdtemp(prefix=RUN_FOLDER_PREFIX, dir=parent)))
        except OSError as error:
            raise UserError(
                f"no folder can be made in {parent} ({error.strerror})",
                "set cluster.temp_dir to a folder you can write to",
            ) from error

    @property
    def ray(self) -> Path:
        """Ray's temporary folder; its logs are in `ray/session_latest/logs`."""
        return self.path / "ray"

    @property
    def logs(self) -> Path:
        return self.ray / "session_latest" / "logs"

    @property
    def scratch(self) -> Path:
        """Temporary files of components; exists once asked for."""
        folder = self.path / "tmp"
        folder.mkdir(exist_ok=True)
        return folder

    def socket(self, component: str) -> str:
        """Address of a component's Unix socket."""
        return f"unix:{self.path}/s/{component}"

    def keep_only_logs(self) -> None:
        """Remove everything but Ray's logs: after a failed start they are all that is of use."""
        logs = self.logs.resolve()
        for folder in (self.path, self.ray, logs.parent):
            for entry in folder.iterdir() if folder.is_dir() else ():
                if not entry.is_symlink() and logs.is_relative_to(entry):
                    continue
                if entry.is_dir() and not entry.is_symlink():
                    shutil.rmtree(entry, ignore_errors=True)
                else:
                    entry.unlink(missing_ok=True)

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
