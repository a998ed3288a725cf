"""What the core asks for. Repeating an action (same id) changes nothing.

id: names the action for good; transaction: 0 outside of one; step: what it is part of; reason: what
was seen and decided, the text that logs, status and metrics show.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from orchestrator.control.keys import Keys
from orchestrator.control.lifecycle import Kind
from orchestrator.control.plan_request import PlanRequest
from orchestrator.control.state import Epoch, Order


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """What every action carries."""

    id: str
    transaction: int = 0
    step: str
    reason: str

    def __post_init__(self) -> None:
        if not self.reason:
            raise ValueError(f"action {self.id} ({self.step}) has no reason")


@dataclass(frozen=True, slots=True, kw_only=True)
class StartComponent(Base):
    """Adopt the process of this generation by its name if it lives, else start it."""

    component: str
    kind: Kind
    pool: str
    generation: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StopComponent(Base):
    """Let it finish what it has begun, then end it. kill: at once. `ComponentDied` confirms it."""

    component: str
    kind: Kind
    generation: int
    kill: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeNow(Base):
    """Ask the component for its description at once."""

    component: str
    generation: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepare(Base):
    """Load `keys` beside what is held, within the bandwidth budget."""

    shard: str
    generation: int
    order: Order
    keys: Keys
    bytes_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Retire(Base):
    """Drop `keys`."""

    shard: str
    generation: int
    order: Order
    keys: Keys


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancel(Base):
    """Stop loading; older commands are refused from here on."""

    shard: str
    generation: int
    order: Order


@dataclass(frozen=True, slots=True, kw_only=True)
class Publish(Base):
    """Send the epoch to every dispatcher."""

    epoch: Epoch


@dataclass(frozen=True, slots=True, kw_only=True)
class Evict(Base):
    """Close the connection of a dispatcher that does not follow."""

    dispatcher: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MakePlan(Base):
    """Answered by `PlanMade` with the same number."""

    request: int
    plan: PlanRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer(Base):
    """The answer to a verb; `reason` is its text."""

    request: str
    done: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Note(Base):
    """One line of the mesh's history: what was seen and decided about `subject`."""

    subject: str
    figures: Mapping[str, float]


Action = (
    StartComponent
    | StopComponent
    | ProbeNow
    | Prepare
    | Retire
    | Cancel
    | Publish
    | Evict
    | MakePlan
    | Answer
    | Note
)
