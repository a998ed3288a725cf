"""Turn one batch's expert choices into what each shard gets. Pure numpy and numba.

Which replica computes a choice is decided by `share`. A row goes to a shard once, however many of
its experts live there.

A `Split` keeps its arrays from batch to batch; one numba pass decides where every choice goes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from actors.dispatch.routing_table import RoutingTable
from actors.dispatch.share import BEYOND_PLAN, UNPLACED, choose_replicas
from native.compiled import compiled

Ints = npt.NDArray[np.int32]
AnyInts = npt.NDArray[np.integer]
Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]
Doubles = npt.NDArray[np.float64]


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


class Split:
    """How one batch is split; the arrays are used again by the next `plan`.

    first, first_row: int32 [D + 1], where each shard's part of the other arrays begins.
    rows: int32, rows of the batch; row_index, experts, weights: one for each assignment.
    """

    def __init__(self) -> None:
        self._reserve(0, 0, 0)

    def _reserve(self, tokens: int, top_k: int, shards: int) -> None:
        count = tokens * top_k
        self._room = (tokens, count, shards)
        self._choice = np.empty(count, np.int32)
        # A row goes to a shard once, so there are at most as many rows as assignments.
        self.rows = np.empty(count, np.int32)
        self.row_index = np.empty(count, np.int32)
        self.experts = np.empty(count, np.int32)
        self.weights = np.empty(count, np.float32)
        self.first = np.zeros(shards + 1, np.int32)
        self.first_row = np.zeros(shards + 1, np.int32)
        self._seen = np.empty(shards, np.int32)

    def plan(
        self,
        table: RoutingTable,
        layer: int,
        usable: Bools,
        cost: Doubles,
        topk_ids: AnyInts,
        topk_weights: Floats,
    ) -> None:
        """Decide on [T, K] choices. usable: [D]; cost: [D, 3], see `actors.dispatch.share`.

        Raises:
            KeyError: the layer has no experts in this plan.
            ExpertsUnplaced: an expert in `topk_ids` has no usable replica.
            ValueError: an expert id beyond the plan's experts.
        """
        start = table.start[layer]
        tokens, top_k = topk_ids.shape
        room = self._room
        if tokens * top_k > room[1] or table.num_shards != room[2]:
            self._reserve(tokens, top_k, table.num_shards)
        problem = split_choices(
            topk_ids, topk_weights, start, table.shards, usable, cost,
            self._choice, self._seen, self.first, self.first_row,
            self.rows, self.row_index, self.experts, self.weights,
        )  # fmt: skip
        if problem == BEYOND_PLAN:
            raise ValueError(
                f"layer {layer}: expert id {int(topk_ids.max())}, the plan has {table.num_experts}"
            )
        if problem == UNPLACED:
            unplaced = self._choice[: topk_ids.size].reshape(topk_ids.shape) == UNPLACED
            raise ExpertsUnplaced(layer, np.unique(topk_ids[unplaced]).tolist())

    def shares(self) -> list[tuple[int, int, int]]:
        """(shard, rows, assignments) of the shards that got some, ascending."""
        first, first_row = self.first.tolist(), self.first_row.tolist()
        return [
            (shard, first_row[shard + 1] - first_row[shard], first[shard + 1] - first[shard])
            for shard in range(len(first) - 1)
            if first[shard + 1] > first[shard]
        ]

    def share(self, shard: int) -> tuple[int, int, int]:
        """(shard, rows, assignments) of one shard."""
        rows = self.first_row[shard + 1] - self.first_row[shard]
        return shard, int(rows), int(self.first[shard + 1] - self.first[shard])

    def translate_rows(self, tokens: Ints) -> None:
        """Rows of the batch that was planned stand for `tokens` of another batch, ascending."""
        used = self.rows[: self.first_row[-1]]
        used[:] = tokens[used]

    def batch(self, shard: int) -> ShardBatch:
        """Views of what `shard` got."""
        here = slice(self.first[shard], self.first[shard + 1])
        rows = self.rows[self.first_row[shard] : self.first_row[shard + 1]]
        return ShardBatch(shard, rows, self.row_index[here], self.experts[here], self.weights[here])


def rest_of(batches: Sequence[ShardBatch]) -> tuple[Ints, Ints, Floats]:
    """What these shards got as a batch of its own.

    Returns its rows in the batch that was split, [T] ascending, and the experts and weights of
    each, [T, K]; the experts are -1 where a row has fewer than K.
    """
    rows = np.concatenate([batch.rows[batch.row_index] for batch in batches])
    order = np.argsort(rows, kind="stable")
    tokens, first, counts = np.unique(rows[order], return_index=True, return_counts=True)
    at = np.repeat(np.arange(len(tokens)), counts), np.arange(len(rows)) - np.repeat(first, counts)
    ids = np.full((len(tokens), counts.max(initial=0)), -1, np.int32)
    weights = np.zeros(ids.shape, np.float32)
    ids[at] = np.concatenate([batch.experts for batch in batches])[order]
    weights[at] = np.concatenate([batch.weights for batch in batches])[order]
    return tokens, ids, weights


@compiled()
def split_choices(  # type: ignore[no-untyped-def]  # noqa: PLR0912
    topk_ids, topk_weights, start, shards, usable, cost,
    choice, last_seen, first, first_row, rows, row_index, experts, weights,
):  # fmt: skip
    """Choose a replica for each choice and lay the choices out shard after shard.

    first, first_row: int32 [D + 1], offsets into rows and into row_index, experts and weights. Rows
    and assignments keep the batch's order. Returns 0, UNPLACED or BEYOND_PLAN.
    """
    problem = choose_replicas(topk_ids, start, shards, usable, cost, choice)
    if problem != 0:
        return problem
    tokens, top_k = topk_ids.shape
    num_shards = usable.shape[0]
    first[:] = 0
    first_row[:] = 0
    last_seen[:] = -1
    for t in range(tokens):
        for k in range(top_k):
            shard = choice[t * top_k + k]
            if shard < 0:
                continue
            first[shard + 1] += 1
            if last_seen[shard] != t:
                last_seen[shard] = t
                first_row[shard + 1] += 1
    for shard in range(num_shards):
        first[shard + 1] += first[shard]
        first_row[shard + 1] += first_row[shard]
    # `first` and `first_row` serve as cursors and are then moved back by one shard.
    last_seen[:] = -1
    for t in range(tokens):
        for k in range(top_k):
            shard = choice[t * top_k + k]
            if shard < 0:
                continue
            if last_seen[shard] != t:
                last_seen[shard] = t
                rows[first_row[shard]] = t
                first_row[shard] += 1
            at = first[shard]
            row_index[at] = first_row[shard] - 1
            experts[at] = topk_ids[t, k]
            weights[at] = topk_weights[t, k]
            first[shard] = at + 1
    for shard in range(num_shards, 0, -1):
        first[shard] = first[shard - 1]
        first_row[shard] = first_row[shard - 1]
    first[0] = 0
    first_row[0] = 0
    for shard in range(num_shards):
        for at in range(first[shard], first[shard + 1]):
            row_index[at] -= first_row[shard]
    return 0
