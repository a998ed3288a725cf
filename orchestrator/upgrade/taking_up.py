"""Which config a process of the controller goes by, and how the next one comes by another.

The first process goes by what it is given. One that Ray starts in its place goes by what the mesh
ran with, or by what an upgrade wants next, which becomes what the mesh runs with once this process
has begun. So a controller that dies in between begins again with the same.
"""

import logging
from typing import NamedTuple

from pydantic import ValidationError

from orchestrator.config.schema import MeshConfig
from orchestrator.config.state_dir import state_dir
from orchestrator.control.state import Intent
from orchestrator.errors import UserError
from orchestrator.upgrade.interfaces import installed, why_apart
from orchestrator.upgrade.standing import Next, Standing, StandingFiles

log = logging.getLogger(__name__)


class TakenUp(NamedTuple):
    """config: to go by. wanted: the upgrade it is from. added: pools that the mesh had not."""

    config: MeshConfig
    wanted: Next | None = None
    added: frozenset[str] = frozenset()


def files_of(config: MeshConfig) -> StandingFiles:
    return StandingFiles(state_dir(config.cluster), config.mesh.name)


def take_up(given: MeshConfig, session: str, *, again: bool) -> TakenUp:
    """given: what the actor was started with. session: folder of the run; files of another one say
    nothing. again: another process of this actor came before."""
    files = files_of(given)
    standing = files.running() if again else None
    if standing is None or standing.session != session:
        return TakenUp(given)
    config = _config_of(standing) or given
    wanted = files.waiting()
    if wanted is None or wanted.session != session:
        return TakenUp(config)
    try:
        fresh = MeshConfig.model_validate(wanted.config)
    except ValidationError as error:
        log.error("the config of the upgrade is refused: %s", error)
        files.refuse(wanted, f"the config is not understood: {error}")
        return TakenUp(config)
    return TakenUp(fresh, wanted, frozenset(fresh.pools) - frozenset(config.pools))


def check_may_join(config: MeshConfig, session: str, fingerprint: str) -> None:
    """Raises UserError where this code or this checkpoint cannot join the mesh that runs."""
    standing = files_of(config).running()
    if standing is None or standing.session != session:
        return
    if fingerprint != standing.fingerprint:
        raise UserError(f"{config.model.path} is another checkpoint than the mesh serves")
    reasons = why_apart(standing.interfaces, installed())
    if reasons:
        raise UserError(
            f"another version was installed: {'; '.join(reasons)}",
            "install the one before again, or stop the mesh and start it",
        )


def why_not_yet(config: MeshConfig, session: str, intent: Intent) -> str:
    """Why the controller does not give way to another one now; empty if it does."""
    files = files_of(config)
    wanted = files.waiting()
    if wanted is None or wanted.session != session:
        return f"no config waits in {files.next_path}: `expertmesh upgrade` writes it"
    if intent.epoch is None:
        return "nothing is placed yet: wait until the mesh serves"
    if intent.rolling is not None:
        return f"{intent.rolling.target} is being restarted: wait until that ends"
    return ""


def wanted_config(config: MeshConfig) -> MeshConfig | None:
    """What waits, as far as this version understands it."""
    wanted = files_of(config).waiting()
    try:
        return MeshConfig.model_validate(wanted.config) if wanted is not None else None
    except ValidationError:
        return None  # the next version will


def keep_running(config: MeshConfig, session: str, code: str, fingerprint: str) -> None:
    """From here on the mesh runs with this."""
    files_of(config).keep_running(
        Standing(
            session=session,
            interfaces=installed(),
            code=code,
            fingerprint=fingerprint,
            config=config.model_dump(mode="json"),
        )
    )


def _config_of(standing: Standing) -> MeshConfig | None:
    try:
        return standing.mesh_config()
    except ValidationError as error:
        log.error("what this mesh ran with is not understood any more: %s", error)
        return None
