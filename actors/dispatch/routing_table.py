"""A plan epoch as a dispatcher looks things up in it: per layer, each expert's live replicas.

Replica lists are in CSR form: replicas of expert e are `shards[start[e]:start[e + 1]]`, ascending
shard index. Shards known to be down are left out, so an expert whose list is empty cannot be served
before the next epoch.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from actors.dispatch.share import cost_table
from placement.cost_model import TYPICAL_COST
from placement.epoch import EMPTY_SLOT, PlanEpoch

Ints = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True, eq=False)
class LayerReplicas:
    """start: int32 [E + 1]; shards: int32 [replicas]."""

    start: Ints
    shards: Ints


@dataclass(frozen=True, slots=True, eq=False)
class RoutingTable:
    """Replicas by model layer, and what calls cost each shard, see `share.cost_table`."""

    epoch: int
    num_shards: int
    num_experts: int
    cost: npt.NDArray[np.float64]
    layers: dict[int, LayerReplicas]


def build_routing_table(
    epoch: PlanEpoch, speed: npt.NDArray[np.float64], down: frozenset[int] = frozenset()
) -> RoutingTable:
    """Look-up tables of `epoch` without the shards in `down`. speed: [D] > 0."""
    live = np.array([shard not in down for shard in range(epoch.num_shards)])
    layers = {
        layer: _layer_replicas(epoch.experts[row], epoch.num_experts, live)
        for row, layer in enumerate(epoch.layers)
    }
    cost = cost_table([TYPICAL_COST] * epoch.num_shards, speed.tolist())
    return RoutingTable(epoch.number, epoch.num_shards, epoch.num_experts, cost, layers)


def _layer_replicas(
    held: npt.NDArray[np.int32], num_experts: int, live: npt.NDArray[np.bool_]
) -> LayerReplicas:
    shard, slot = np.nonzero((held != EMPTY_SLOT) & live[:, None])
    expert = held[shard, slot]
    order = np.lexsort((shard, expert))
    counts = np.bincount(expert, minlength=num_experts)
    start = np.zeros(num_experts + 1, np.int32)
    np.cumsum(counts, out=start[1:])
    return LayerReplicas(start, shard[order].astype(np.int32))
