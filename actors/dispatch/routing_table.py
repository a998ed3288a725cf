"""A plan epoch as a dispatcher looks things up in it: each expert's replicas, layer by layer.

The table knows nothing of who is down or what a shard costs. Both are arguments of the choice
(`actors.dispatch.share`), so losing a shard or a new weight rebuilds nothing.
"""

import functools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from placement.epoch import PlanEpoch

Ints = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True, eq=False)
class RoutingTable:
    """Replica lists of all layers in CSR form.

    start: by model layer, int32 [E + 1].
    shards: int32 [R], of all layers; those that hold expert e of a layer are
        shards[start[e]:start[e + 1]], ascending.
    """

    epoch: int
    num_shards: int
    num_experts: int
    start: dict[int, Ints]
    shards: Ints


@functools.lru_cache(maxsize=2)
def routing_table(epoch: PlanEpoch) -> RoutingTable:
    """Look-up table of `epoch`; the same object for the same epoch, as when only weights change."""
    experts = epoch.num_experts
    start = {
        layer: epoch.first_replica[row * experts : (row + 1) * experts + 1]
        for row, layer in enumerate(epoch.layers)
    }
    return RoutingTable(epoch.number, epoch.num_shards, experts, start, epoch.replicas)
