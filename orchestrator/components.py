"""What the controller knows of each process of the mesh."""

import logging
from dataclasses import dataclass, field
from typing import Any

from ray.actor import ActorHandle

from orchestrator.status import ComponentKind, ComponentState, ComponentStatus

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
    said: dict[str, Any] = field(default_factory=dict)
    info: dict[str, Any] = field(default_factory=dict)
    """What `start` returned: addresses, node, kernel."""

    @property
    def pid(self) -> int:
        """Process id it told; 0 before it spoke."""
        return int(self.said.get("pid", self.info.get("pid", 0)))

    @property
    def node(self) -> str:
        """Host name of its node; "" before it spoke. `actors.wire.node` adds a boot id."""
        return str(self.said.get("node", self.info.get("node", ""))).partition("/")[0]

    def hear(self, said: dict[str, Any]) -> None:
        """Take in a status answer."""
        self.said = said
        self.state = ComponentState(said["state"])
        self.detail = said.get("detail", "")

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
