"""What is asked of the planner, and what it answers. Planning takes seconds and runs elsewhere."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from orchestrator.control.keys import Copies, Keys


@dataclass(frozen=True, slots=True)
class ShardRoom:
    """What a plan may count on: bytes for weights, bytes per kind of key, relative speed.

    call_rows: what a call costs on top, in rows. domain: shards of one may fail together.
    """

    capacity_bytes: int
    key_bytes: Mapping[str, int]
    rate: float
    call_rows: float = 0.0
    domain: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class PlanRequest:
    """Place `keys` on `shards`. current: copies now, of these and of shards that leave.

    load: [L, E] tokens expected; planned_load: what the current placement was planned for; None
    where unknown. most_redundant: copies of a layer beyond `min_copies` each, at most; None: as
    many as fit. anew: the set of shards changed, so that keeping what is there will not do.
    forbidden: keys that a shard must not be given.
    """

    keys: Keys
    shards: Mapping[str, ShardRoom]
    current: Copies
    load: NDArray[np.float64] | None
    planned_load: NDArray[np.float64] | None
    min_copies: int
    anew: bool
    dry_run: bool
    reason: str
    most_redundant: int | None = None
    forbidden: Mapping[str, Keys] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Proposal:
    """A placement and what it is predicted to bring.

    balancedness: of the placement as it is for this load, 0 where it does not serve; predicted: of
    `target`; possible: ceiling of any. bytes: to load.
    """

    target: Copies
    balancedness: float
    predicted: float
    possible: float
    bytes: int
    load: NDArray[np.float64]
    reason: str
    dry_run: bool = False
    anew: bool = False
