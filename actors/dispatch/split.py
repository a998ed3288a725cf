"""Turn one batch's expert choices into what each shard gets. Pure numpy and numba.

Which replica computes a choice is decided by `share`. A row goes to a shard once, however many of
its experts live there.

A `Split` keeps its arrays from batch to batch. One numba pass decides where every choice goes, one
per shard writes rows, ids and weights straight into the body of its call, and one per shard adds
its answer up.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from actors.dispatch.routing_table import RoutingTable
from actors.dispatch.share import BEYOND_PLAN, UNPLACED, choose_replicas
from actors.wire.bf16 import round_to_bf16
from actors.wire.fp8_rows import encode_row
from placement.compiled import compiled

Ints = npt.NDArray[np.int32]
AnyInts = npt.NDArray[np.integer]
Floats = npt.NDArray[np.float32]
Bits16 = npt.NDArray[np.uint16]
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

    def translate_rows(self, tokens: Ints) -> None:
        """Rows of the batch that was planned stand for `tokens` of another batch, ascending."""
        used = self.rows[: self.first_row[-1]]
        used[:] = tokens[used]

    def batch(self, shard: int) -> ShardBatch:
        """Views of what `shard` got."""
        here = slice(self.first[shard], self.first[shard + 1])
        rows = self.rows[self.first_row[shard] : self.first_row[shard + 1]]
        return ShardBatch(shard, rows, self.row_index[here], self.experts[here], self.weights[here])

    def fill(
        self, shard: int, source: Bits16, body: npt.NDArray[np.uint8], fp8: bool = False
    ) -> None:
        """Write the body of the CALL to `shard`: ids, weights and its rows of `source` [T, H].

        fp8: code the rows so (see `actors.wire.fp8_rows`).
        """
        fill_call(
            shard, self.first, self.first_row, self.rows, self.row_index, self.experts,
            self.weights, source, body, fp8,
        )  # fmt: skip

    def combine(
        self, shard: int, sums: Floats, total: Floats, out: Bits16, begin: bool, end: bool
    ) -> None:
        """Add a shard's answer, sums [R, H], to total [T, H].

        begin: total holds nothing yet. end: nothing follows, so round it into out [T, H] (bf16).
        """
        add_sums(shard, self.first_row, self.rows, sums, total, out, begin, end)


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


@compiled()
def fill_call(  # type: ignore[no-untyped-def]
    shard, first, first_row, rows, row_index, experts, weights, source, body, fp8
):
    """Write the body of a CALL, see `actors.wire.frame`."""
    hidden = source.shape[1]
    begin, count = first_row[shard], first_row[shard + 1] - first_row[shard]
    at, assignments = first[shard], first[shard + 1] - first[shard]
    indices = body[: 4 * assignments].view(np.int32)
    ids = body[4 * assignments : 8 * assignments].view(np.int32)
    scales = body[8 * assignments : 12 * assignments].view(np.float32)
    for i in range(assignments):
        indices[i] = row_index[at + i]
        ids[i] = experts[at + i]
        scales[i] = weights[at + i]
    body = body[12 * assignments :]
    if fp8:
        row_scales, codes = body[: 4 * count].view(np.float32), body[4 * count :]
        for i in range(count):
            code = codes[i * hidden : (i + 1) * hidden]
            row_scales[i] = encode_row(source[rows[begin + i]], code)
        return
    target = body.view(np.uint16)
    for i in range(count):
        row = source[rows[begin + i]]
        for h in range(hidden):
            target[i * hidden + h] = row[h]


@compiled()
def add_sums(shard, first_row, rows, sums, total, out, begin, end):  # type: ignore[no-untyped-def]
    """See `Split.combine`; rows are ascending and may repeat."""
    tokens, hidden = total.shape
    at, last = first_row[shard], first_row[shard + 1]
    offset = at
    bits = total.view(np.uint32)
    for t in range(tokens):
        if begin:
            for h in range(hidden):
                total[t, h] = 0.0
        while at < last and rows[at] == t:
            for h in range(hidden):
                total[t, h] += sums[at - offset, h]
            at += 1
        if end:
            for h in range(hidden):
                out[t, h] = round_to_bf16(bits[t, h])
