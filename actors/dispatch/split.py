"""Turn one batch's expert choices into what each shard gets. Pure numpy and numba.

Experts with one replica have no choice. Assignments of replicated experts then go, one by one and
in a fixed order, to the replica that would finish them first: the integer form of water-filling on
this batch's true counts, weighted by shard speed. A row goes to a shard once, however many of its
experts live there.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from numba import njit

from actors.dispatch.routing_table import RoutingTable

Ints = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]

UNPLACED = -2
"""Marks an assignment whose expert has no live replica."""
ABSENT = -1
"""Marks a padded choice (topk id below 0): nobody computes it."""


class ExpertsUnplaced(LookupError):
    """Experts of this batch have no live replica; `experts` names them."""

    def __init__(self, layer: int, experts: list[int]) -> None:
        super().__init__(f"layer {layer}: no live shard holds experts {experts[:16]}")
        self.layer = layer
        self.experts = experts


@dataclass(frozen=True, slots=True, eq=False)
class ShardBatch:
    """What one shard computes: rows [R] index the batch; row_index, experts, weights are [A]."""

    shard: int
    rows: Ints
    row_index: Ints
    experts: Ints
    weights: Floats


def split_batch(
    table: RoutingTable, layer: int, topk_ids: Ints, topk_weights: Floats
) -> list[ShardBatch]:
    """Split [T, K] choices over the shards, in ascending shard order; idle shards are left out.

    Raises:
        KeyError: the layer has no experts in this plan.
        ExpertsUnplaced: an expert in `topk_ids` has no live replica.
        ValueError: an expert id beyond the plan's experts.
    """
    replicas = table.layers[layer]
    if topk_ids.size and int(topk_ids.max()) >= table.num_experts:
        raise ValueError(
            f"layer {layer}: expert id {int(topk_ids.max())}, the plan has {table.num_experts}"
        )
    choice = choose_replicas(topk_ids, replicas.start, replicas.shards, table.speed)
    if (choice == UNPLACED).any():
        raise ExpertsUnplaced(layer, np.unique(topk_ids[choice == UNPLACED]).tolist())
    return _group(choice, topk_ids, topk_weights, table.num_shards)


def _group(choice: Ints, topk_ids: Ints, topk_weights: Floats, shards: int) -> list[ShardBatch]:
    first_row, first, rows, row_index, experts, weights = group_by_shard(
        choice, topk_ids, topk_weights, shards
    )
    return [
        ShardBatch(
            shard,
            rows[first_row[shard] : first_row[shard + 1]],
            row_index[first[shard] : first[shard + 1]],
            experts[first[shard] : first[shard + 1]],
            weights[first[shard] : first[shard + 1]],
        )
        for shard in range(shards)
        if first[shard] < first[shard + 1]
    ]


@njit(cache=True, nogil=True)
def choose_replicas(topk_ids, start, shards, speed):  # type: ignore[no-untyped-def]
    """Shard of each choice, int32 [T, K]; UNPLACED or ABSENT where there is none."""
    tokens, top_k = topk_ids.shape
    choice = np.empty((tokens, top_k), np.int32)
    load = np.zeros(speed.shape[0], np.float64)
    replicated = 0
    for t in range(tokens):
        for k in range(top_k):
            expert = topk_ids[t, k]
            if expert < 0:
                choice[t, k] = ABSENT
                continue
            count = start[expert + 1] - start[expert]
            if count == 1:
                shard = shards[start[expert]]
                choice[t, k] = shard
                load[shard] += 1.0
            elif count == 0:
                choice[t, k] = UNPLACED
            else:
                replicated += 1
                choice[t, k] = UNPLACED
    if replicated == 0:
        return choice
    for t in range(tokens):
        for k in range(top_k):
            expert = topk_ids[t, k]
            if expert < 0 or start[expert + 1] - start[expert] < 2:
                continue
            best, best_finish = -1, np.inf
            for at in range(start[expert], start[expert + 1]):
                finish = (load[shards[at]] + 1.0) / speed[shards[at]]
                if finish < best_finish:
                    best, best_finish = shards[at], finish
            choice[t, k] = best
            load[best] += 1.0
    return choice


@njit(cache=True, nogil=True)
def group_by_shard(choice, topk_ids, topk_weights, num_shards):  # type: ignore[no-untyped-def]
    """Lay the choices out shard after shard.

    Returns first_row, first: int32 [D + 1], offsets into rows [R total] and into row_index, experts
    and weights [A total]. Rows and assignments keep the batch's order.
    """
    tokens, top_k = choice.shape
    first = np.zeros(num_shards + 1, np.int32)
    first_row = np.zeros(num_shards + 1, np.int32)
    last_seen = np.full(num_shards, -1, np.int32)
    for t in range(tokens):
        for k in range(top_k):
            shard = choice[t, k]
            if shard < 0:
                continue
            first[shard + 1] += 1
            if last_seen[shard] != t:
                last_seen[shard] = t
                first_row[shard + 1] += 1
    for shard in range(num_shards):
        first[shard + 1] += first[shard]
        first_row[shard + 1] += first_row[shard]
    rows = np.empty(first_row[num_shards], np.int32)
    row_index = np.empty(first[num_shards], np.int32)
    experts = np.empty(first[num_shards], np.int32)
    weights = np.empty(first[num_shards], np.float32)
    at, at_row = first[:-1].copy(), first_row[:-1].copy()
    last_seen[:] = -1
    for t in range(tokens):
        for k in range(top_k):
            shard = choice[t, k]
            if shard < 0:
                continue
            if last_seen[shard] != t:
                last_seen[shard] = t
                rows[at_row[shard]] = t
                at_row[shard] += 1
            row_index[at[shard]] = at_row[shard] - 1 - first_row[shard]
            experts[at[shard]] = topk_ids[t, k]
            weights[at[shard]] = topk_weights[t, k]
            at[shard] += 1
    return first_row, first, rows, row_index, experts, weights


@njit(cache=True, nogil=True)
def gather_rows(source, rows, target):  # type: ignore[no-untyped-def]
    """target[i] = source[rows[i]]; both [.., H] of the same type."""
    for i in range(rows.shape[0]):
        target[i, :] = source[rows[i], :]


@njit(cache=True, nogil=True)
def add_rows(total, rows, sums):  # type: ignore[no-untyped-def]
    """total[rows[i]] += sums[i], fp32."""
    for i in range(rows.shape[0]):
        t = rows[i]
        for h in range(total.shape[1]):
            total[t, h] += sums[i, h]
