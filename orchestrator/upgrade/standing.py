"""What a mesh runs with and what it is to run with next, in files beside its journal.

`MESH.running.json` is written by the controller once it goes by it. `MESH.next.json` is written by
`expertmesh upgrade`, taken up by the next process of the controller, and then removed; one that it
cannot begin with becomes `MESH.refused.json` with the reason. Whoever may write here may change the
mesh's config: the folder is the user's own.
"""

import logging
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from orchestrator.config.schema import MeshConfig
from orchestrator.errors import UserError

log = logging.getLogger(__name__)

SCHEMA = 1
M = TypeVar("M", bound=BaseModel)


class Standing(BaseModel):
    """session: folder of the run. interfaces: see `interfaces`. code: digest of what shards,
    routers and engines ran when the controller began; fingerprint: of the checkpoint."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    schema_version: int = SCHEMA
    session: str
    interfaces: dict[str, str]
    code: str
    fingerprint: str
    config: dict[str, Any]

    def mesh_config(self) -> MeshConfig:
        """Raises ValidationError where it is of another version's keys."""
        return MeshConfig.model_validate(self.config)


class Next(BaseModel):
    """What an upgrade wants. reason: why it was refused, empty before that."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    schema_version: int = SCHEMA
    session: str
    config: dict[str, Any]
    reason: str = ""


class StandingFiles:
    """Those of one mesh."""

    def __init__(self, folder: Path, mesh: str) -> None:
        self.running_path = folder / f"{mesh}.running.json"
        self.next_path = folder / f"{mesh}.next.json"
        self.refused_path = folder / f"{mesh}.refused.json"

    def running(self) -> Standing | None:
        """None where there is none that can be read."""
        return _read(self.running_path, Standing)

    def waiting(self) -> Next | None:
        return _read(self.next_path, Next)

    def refused(self) -> Next | None:
        return _read(self.refused_path, Next)

    def keep_running(self, standing: Standing) -> None:
        """What the mesh runs with from here on. A disk that does not take it costs the next
        upgrade, and no service."""
        try:
            _write(self.running_path, standing)
            self.next_path.unlink(missing_ok=True)
        except OSError as error:
            log.warning("what this mesh runs with is not kept: %s", error)

    def want(self, wanted: Next) -> None:
        """Raises UserError where it cannot be written."""
        try:
            self.refused_path.unlink(missing_ok=True)
            _write(self.next_path, wanted)
        except OSError as error:
            raise UserError(f"{self.next_path} cannot be written", str(error.strerror)) from error

    def withdraw(self) -> None:
        self.next_path.unlink(missing_ok=True)

    def refuse(self, wanted: Next, reason: str) -> None:
        """Never to be tried again."""
        try:
            _write(self.refused_path, wanted.model_copy(update={"reason": reason}))
            self.next_path.unlink(missing_ok=True)
        except OSError as error:
            log.warning("%s cannot be set aside: %s", self.next_path, error)

    def remove(self) -> None:
        """The mesh is over."""
        for path in (self.running_path, self.next_path, self.refused_path):
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                log.warning("%s stays behind: %s", path, error)


def _write(path: Path, body: BaseModel) -> None:
    fresh = path.with_name(f"{path.name}.new")
    fresh.touch(mode=0o600)
    fresh.write_text(body.model_dump_json(indent=1))
    fresh.replace(path)


def _read(path: Path, model: type[M]) -> M | None:
    try:
        return model.model_validate_json(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        log.warning("%s is not read: %s", path, error)
        return None
