"""What a mesh says about itself: the body of `expertmesh status --json` and `/api/v1/status`."""

from enum import StrEnum

from pydantic import BaseModel, ConfigDict

LOAD_ENGINE = "Load the engine"
"""The last step of a start, and the longest."""


class ComponentKind(StrEnum):
    CONTROLLER = "controller"
    GATEWAY = "gateway"
    ENGINE = "engine"
    ROUTER = "router"
    SHARD = "shard"


class ComponentState(StrEnum):
    STARTING = "starting"
    LOADING = "loading"
    READY = "ready"
    SUSPECT = "suspect"  # was ready, but has been silent for several probes
    DRAINING = "draining"
    DEAD = "dead"


class ComponentStatus(BaseModel):
    """One process of the mesh."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str
    kind: ComponentKind
    pool: str | None = None
    """Device pool of a shard; None for the others."""
    emulated: bool = False
    """The pool's vendor, speed and memory are emulated on other hardware."""
    node: str
    """Host name of the node."""
    pid: int
    state: ComponentState
    detail: str = ""
    """One line for people: what it is doing or why it died."""
    memory_bytes: int | None = None
    """Expert weights held by a shard, parameters held by an engine."""
    slots: int | None = None
    """(layer, expert) pairs held by a shard."""
    speed: float | None = None
    """Relative speed of a shard the plan counts on."""
    calls: int | None = None
    """Kernel calls of a shard, calls of a router."""
    failed_calls: int | None = None
    """Calls that a shard's kernel failed on."""
    busy_s: float | None = None
    """Time that a shard's kernel ran for."""


class MeshStatus(BaseModel):
    """The whole mesh at one moment."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    mesh: str
    model: str
    address: str = ""
    """What another vLLM process sets as EXPERTMESH_ADDRESS to use these experts."""
    ready: bool
    reason: str
    """Why it is ready or not, in one line."""
    epoch: int
    """Plan epoch being served; 0 before the first."""
    router_mode: str
    components: list[ComponentStatus]
    stale_s: float = 0.0
    """Age of all this where the controller does not answer; 0 where it does."""
