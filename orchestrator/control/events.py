"""What may happen. `now_s` is the time of the controller's own clock at which it took the event in.

Events may be late, lost or doubled; those of a former process of a place carry its generation.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from orchestrator.control.plan_request import Proposal
from orchestrator.control.state import Description, EngineLoad, EpochId


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passed."""

    now_s: float


@dataclass(frozen=True, slots=True)
class ComponentSaid:
    """Answer to a probe, a start or a command."""

    now_s: float
    id: str
    generation: int
    said: Description


@dataclass(frozen=True, slots=True)
class ProbeMissed:
    """A probe was not answered in time. Nothing follows from one."""

    now_s: float
    id: str
    generation: int


@dataclass(frozen=True, slots=True)
class ComponentDied:
    """Its process ended, for certain."""

    now_s: float
    id: str
    generation: int
    why: str


@dataclass(frozen=True, slots=True)
class LinkLost:
    """A dispatcher's link to a shard ended. The shard is asked; nothing else follows."""

    now_s: float
    shard: str
    incarnation: int
    dispatcher: str


@dataclass(frozen=True, slots=True)
class ShardWrong:
    """A dispatcher found a shard's answers wrong: no numbers where another replica gave some, or
    another shape than asked for."""

    now_s: float
    shard: str
    incarnation: int
    dispatcher: str


@dataclass(frozen=True, slots=True)
class Served:
    """How a shard answered a dispatcher. slowness: measured time of its answers over the predicted
    one; quiet_s: how long its last answer was ago."""

    slowness: float = 1.0
    quiet_s: float = 0.0


@dataclass(frozen=True, slots=True)
class DispatcherSaid:
    """What a dispatcher follows. served: the shards that answered it since it last said so."""

    now_s: float
    id: str
    adopted: EpochId | None
    served: Mapping[str, Served] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DispatcherGone:
    """Its connection to the directory ended."""

    now_s: float
    id: str


@dataclass(frozen=True, slots=True)
class Published:
    """The directory sends this epoch to all who follow."""

    now_s: float
    epoch: EpochId


@dataclass(frozen=True, slots=True, eq=False)
class LoadSeen:
    """One window: counts [L, E] tokens, layers and experts as `planning.Grid` orders them; busy:
    part of it that each shard computed in."""

    now_s: float
    counts: NDArray[np.float64]
    traffic: str = ""
    busy: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class EnginesLoad:
    """The signals of the engines' scaler."""

    now_s: float
    load: EngineLoad


@dataclass(frozen=True, slots=True, eq=False)
class PlanMade:
    """Answer to `MakePlan`: a proposal, or why there is none."""

    now_s: float
    request: int
    proposal: Proposal | None
    why: str


@dataclass(frozen=True, slots=True)
class VerbAsked:
    """A person or program asks for a change; `Answer` names `request` again."""

    now_s: float
    request: str
    verb: str
    target: str = ""
    number: int = 0
    dry_run: bool = False


Event = (
    Tick
    | ComponentSaid
    | ProbeMissed
    | ComponentDied
    | LinkLost
    | ShardWrong
    | DispatcherSaid
    | DispatcherGone
    | Published
    | LoadSeen
    | EnginesLoad
    | PlanMade
    | VerbAsked
)
