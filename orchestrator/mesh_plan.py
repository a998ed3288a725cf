"""From pools and a model to the first plan epoch: memory to slots, slots and speed to a placement.

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
from placement.epoch import PlanEpoch
from placement.planner import plan_placement


@dataclass(frozen=True, slots=True)
class ShardCapacity:
    """What the planner may count on.

    memory_bytes: for expert weights; speed: relative, > 0; bytes_per_expert: what one takes in this
    shard's kernel, more than in the checkpoint where the kernel has to widen the format.
    """

    id: str
    memory_bytes: int
    speed: float
    bytes_per_expert: int


@dataclass(frozen=True, slots=True, eq=False)
class MeshPlan:
    """The epoch and what the planner says of it: predicted balance, the best any placement could
    reach (bound), and how many copies of experts are to load (moves)."""

    epoch: PlanEpoch
    balance: float
    bound: float
    moves: int
    reason: str


def slots_of_memory(spec: ExpertSpec, capacities: Sequence[ShardCapacity]) -> npt.NDArray[np.int64]:
    """[L, D] experts each shard can hold in each layer.

    Memory is spread evenly over the layers; a remainder that is not enough for one more slot in
    every layer goes to the first ones. No layer gets more slots than there are experts.

    Raises:
        UserError: the shards' memory together does not hold every expert once.
    """
    layers = len(spec.layers)
    slots = np.zeros((layers, len(capacities)), np.int64)
    for shard, capacity in enumerate(capacities):
        total = min(capacity.memory_bytes // capacity.bytes_per_expert, layers * spec.num_experts)
        slots[:, shard] = total // layers
        slots[: total % layers, shard] += 1
    held = slots.sum(axis=1)
    if (held < spec.num_experts).any():
        have, needed = int(slots.sum()), layers * spec.num_experts
        raise UserError(
            f"the shards' memory holds {have} experts of {format_bytes(spec.bytes_per_expert)}, "
            f"but {spec.architecture} has {needed} ({layers} layers of {spec.num_experts}, "
            f"{format_bytes(needed * spec.bytes_per_expert)})",
            "raise `memory` of the pools or add shards",
        )
    return slots


def limit_redundancy(
    slots: npt.NDArray[np.int64], num_experts: int, redundant: int | Literal["fill"]
) -> npt.NDArray[np.int64]:
    """Take slots away until each layer has `redundant` more than experts; from the roomiest shards.

    slots: [L, D]; returns a new [L, D].
    """
    if redundant == "fill":
        return slots
    limited = slots.copy()
    for row in limited:
        for _ in range(int(row.sum()) - num_experts - redundant):
            row[int(row.argmax())] -= 1
    return limited


def plan_mesh(
    spec: ExpertSpec,
    capacities: Sequence[ShardCapacity],
    redundant: int | Literal["fill"],
    number: int,
    load: npt.NDArray[np.float64] | None = None,
) -> MeshPlan:
    """Plan epoch `number`. load: [L, E] tokens per expert; None before anything was served.

    Raises:
        UserError: too little memory.
    """
    slots = limit_redundancy(slots_of_memory(spec, capacities), spec.num_experts, redundant)
    speed = np.array([capacity.speed for capacity in capacities])
    if load is None:
        load = np.ones((len(spec.layers), spec.num_experts))
    placement = plan_placement(load, speed, slots)
    epoch = PlanEpoch(
        number,
        spec.num_experts,
        spec.layers,
        placement.experts.astype(np.int32),
        placement.shares.astype(np.float64),
    )
    return MeshPlan(
        epoch, placement.balance, placement.bound, len(placement.moves), placement.reason
    )
