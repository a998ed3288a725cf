"""From pools and a model to the first plan epoch: memory to slots, slots and costs to a placement.

Pure decisions; the controller measures, this module computes, the cluster acts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from actors.experts.spec import ExpertSpec
from orchestrator.config.bytesize import format_bytes
from orchestrator.errors import UserError
from placement.cost_model import DeviceCost, expected_reads, planner_speed
from placement.epoch import PlanEpoch
from placement.memory import share_slots
from placement.planner import plan_placement
from placement.validation import number_domains

REFERENCE_TOKENS = 64
"""Tokens of the calls planned for, as in decoding with a few dozen requests: how much of a call is
reading weights depends on it."""


@dataclass(frozen=True, slots=True)
class ShardCapacity:
    """What the planner may count on.

    memory_bytes: for expert weights; cost: of calls, measured or a relative speed of the typical
    one; bytes_per_expert: what one takes in this shard's kernel, more than in the checkpoint where
    the kernel has to widen the format. domain: failure domain, "" where none is named.
    """

    id: str
    memory_bytes: int
    cost: DeviceCost
    bytes_per_expert: int
    domain: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class MeshPlan:
    """The epoch and what the planner says of it: predicted balancedness, the best that any
    placement could reach (bound), and how many copies of experts are to load (moves)."""

    epoch: PlanEpoch
    balancedness: float
    bound: float
    moves: int
    reason: str


def slots_of_memory(
    spec: ExpertSpec,
    capacities: Sequence[ShardCapacity],
    redundant: int | Literal["fill"] = "fill",
    load: npt.NDArray[np.float64] | None = None,
    min_copies: int = 1,
) -> npt.NDArray[np.int64]:
    """[L, D] experts each shard can hold in each layer; see `placement.memory`.

    redundant: slots of a layer beyond one per expert at most. load: [L, E] tokens per expert, which
    say where redundant slots help most; None for all alike. min_copies: shards each expert lives
    on.

    Raises:
        UserError: the shards' memory together does not hold every expert so often.
    """
    layers, experts = len(spec.layers), spec.num_experts
    # Experts take more room on some shards than on others, so memory is counted in experts.
    room = [
        min(capacity.memory_bytes // capacity.bytes_per_expert, layers * experts)
        for capacity in capacities
    ]
    try:
        return share_slots(
            np.ones((layers, experts)) if load is None else load,
            np.array(room, np.int64),
            min_copies=min_copies,
            max_redundant_per_layer=None if redundant == "fill" else redundant,
        )
    except ValueError:
        needed = layers * experts * min_copies
        raise UserError(
            f"the shards' memory holds {sum(room)} experts of "
            f"{format_bytes(spec.bytes_per_expert)}, but {spec.architecture} has {needed} "
            f"({layers} layers of {experts}, {format_bytes(needed * spec.bytes_per_expert)})"
            f"{_missing(needed - sum(room), spec)}",
            "raise `memory` of the pools or add shards" + _how_many(needed, room, capacities),
        ) from None


def _missing(experts: int, spec: ExpertSpec) -> str:
    """None are where shards of unlike memory cannot hold different copies."""
    return f": {format_bytes(experts * spec.bytes_per_expert)} are missing" if experts > 0 else ""


def _how_many(needed: int, room: Sequence[int], capacities: Sequence[ShardCapacity]) -> str:
    """Of the largest shard, so many more would do."""
    missing, most = needed - sum(room), max(room, default=0)
    if missing <= 0 or most <= 0:
        return ""
    return f": {-(-missing // most)} more like {capacities[room.index(most)].id} would do"


def relative_speeds(
    spec: ExpertSpec, capacities: Sequence[ShardCapacity], calls: float = 1.0
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """(speed [D], offset [D]) for the planner, in calls of `REFERENCE_TOKENS` tokens.

    calls: per layer, in the window whose load is planned for.
    """
    reads = expected_reads(spec.num_experts, REFERENCE_TOKENS * spec.top_k)
    return planner_speed([capacity.cost for capacity in capacities], calls, reads)


def plan_mesh(
    spec: ExpertSpec,
    capacities: Sequence[ShardCapacity],
    redundant: int | Literal["fill"],
    number: int,
    load: npt.NDArray[np.float64] | None = None,
    *,
    min_copies: int = 1,
) -> MeshPlan:
    """Plan epoch `number`. load: [L, E] tokens per expert; None before anything was served.
    min_copies: shards each expert lives on.

    Raises:
        UserError: too little memory.
    """
    slots = slots_of_memory(spec, capacities, redundant, load, min_copies)
    per_call = REFERENCE_TOKENS * spec.top_k
    if load is None:
        load = np.full((len(spec.layers), spec.num_experts), per_call / spec.num_experts)
    speed, offset = relative_speeds(spec, capacities, float(load.sum(axis=1).mean()) / per_call)
    placement = plan_placement(
        load,
        speed,
        slots,
        offset=offset,
        min_copies=min_copies,
        failure_domains=number_domains([one.domain or one.id for one in capacities]),
    )
    epoch = PlanEpoch(
        number,
        spec.num_experts,
        spec.layers,
        placement.experts.astype(np.int32),
        placement.shares.astype(np.float64),
    )
    return MeshPlan(
        epoch, placement.balancedness, placement.bound, len(placement.moves), placement.reason
    )
