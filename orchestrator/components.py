"""What the controller knows of each process of the mesh."""

import logging
from dataclasses import dataclass, field
from typing import Any

from ray.actor import ActorHandle

from actors.dispatch.mesh_view import MeshView
from actors.experts.spec import ExpertSpec
from orchestrator.probe import Probe
from orchestrator.status import ComponentKind, ComponentState, ComponentStatus
from placement.cost_model import TYPICAL_COST, DeviceCost

log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Component:
    """One actor. `said` is its last status; a dead one keeps what it said last."""

    id: str
    kind: ComponentKind
    handle: ActorHandle
    pool: str | None = None
    emulated: bool = False
    state: ComponentState = ComponentState.STARTING
    detail: str = ""
    speed: float | None = None
    cost: DeviceCost = TYPICAL_COST
    probe: Probe[dict[str, Any]] = field(init=False)
    silent_probes: int = 0
    """Probes in a row that got no answer."""
    said: dict[str, Any] = field(default_factory=dict)
    info: dict[str, Any] = field(default_factory=dict)
    """What `start` returned: addresses, node, kernel."""

    def __post_init__(self) -> None:
        self.probe = Probe(self._status)

    async def _status(self) -> dict[str, Any]:
        said: dict[str, Any] = await self.handle.status.remote()
        return said

    @property
    def pid(self) -> int:
        """Process id it told; 0 before it spoke."""
        return int(self.said.get("pid", self.info.get("pid", 0)))

    @property
    def node(self) -> str:
        """Host name of its node; "" before it spoke. `actors.wire.node` adds a boot id."""
        return str(self.said.get("node", self.info.get("node", ""))).partition("/")[0]

    def hear(self, said: dict[str, Any]) -> None:
        """Take in a status answer; one that was asked for before it died changes nothing."""
        if self.state is ComponentState.DEAD:
            return
        if self.state is ComponentState.SUSPECT:
            log.warning("%s %s answers again", self.kind, self.id)
        self.said, self.silent_probes = said, 0
        self.state = ComponentState(said["state"])
        self.detail = said.get("detail", "")

    def miss(self, detail: str, suspect_after: int) -> None:
        """A probe got no answer. A ready component is suspected at the `suspect_after`-th in a row;
        one that is still starting has work to do and a time limit of its own."""
        self.silent_probes += 1
        self.detail = detail
        if self.state is ComponentState.READY and self.silent_probes >= suspect_after:
            log.warning("%s %s is suspected: it %s", self.kind, self.id, detail)
            self.state = ComponentState.SUSPECT

    def lose(self, reason: str) -> None:
        """It is dead; says so once in the log."""
        if self.state is not ComponentState.DEAD:
            log.error("%s %s is dead: %s", self.kind, self.id, reason)
        self.state, self.detail = ComponentState.DEAD, reason

    def status(self) -> ComponentStatus:
        return ComponentStatus(
            id=self.id,
            kind=self.kind,
            pool=self.pool,
            emulated=self.emulated,
            node=self.node,
            pid=self.pid,
            state=self.state,
            detail=self.detail,
            memory_bytes=self.said.get("memory_bytes"),
            slots=self.said.get("slots"),
            speed=self.speed,
        )


@dataclass(slots=True, eq=False)
class MeshParts:
    """What a mesh is made of so far."""

    shards: list[Component] = field(default_factory=list)
    """In the order of the plan epoch."""
    routers: list[Component] = field(default_factory=list)
    engines: list[Component] = field(default_factory=list)
    spec: ExpertSpec | None = None
    view: MeshView | None = None
    phase: tuple[str, str] = ("Start the controller", "")
    """(step of the start-up, how far it is), for people."""

    @property
    def all(self) -> list[Component]:
        return [*self.shards, *self.routers, *self.engines]
