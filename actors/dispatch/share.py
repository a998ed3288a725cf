"""Which replica computes each choice of a batch: the split by measured cost. Numba only.

Experts with one replica have no choice. The rows of replicated experts then go, in blocks and the
most wanted expert first, to the replica that would finish them first: water-filling on this batch's
true counts under each shard's cost (`placement.cost_model`). A block is not divided, because a
shard that computes any row of an expert has to read all of its weights: with few rows an expert
that takes half of them would cost as much as one that takes all (measured on 2 shards that both
hold all of 64 experts, 16 rows: twice the kernel time of undivided experts).
"""

import numpy as np

from placement.compiled import compiled

UNPLACED = -2
"""Marks an assignment whose expert has no usable replica."""
BEYOND_PLAN = -3
"""An expert id that the plan does not have."""
ABSENT = -1
"""Marks a padded choice (topk id below 0): nobody computes it."""

BLOCK_ROWS = 32
"""Rows of one expert that stay together; beyond it the rows cost more than the weights."""


@compiled()
def choose_replicas(topk_ids, start, shards, usable, cost, choice):  # type: ignore[no-untyped-def]
    """Choose a shard for each of the [T, K] choices.

    start, shards: replicas of expert e are shards[start[e]:start[e + 1]], int32 [E + 1] and [R].
    usable: bool [D]; the others get nothing.
    cost: float64 [D, 3], see `placement.cost_model.cost_table`.
    choice: int32 [T * K] to fill; UNPLACED or ABSENT where there is no shard.

    Returns 0, UNPLACED if some choice has no usable replica, or BEYOND_PLAN.
    """
    tokens, top_k = topk_ids.shape
    num_experts = start.shape[0] - 1
    counts = np.zeros(num_experts, np.int32)
    for t in range(tokens):
        for k in range(top_k):
            expert = topk_ids[t, k]
            if expert >= num_experts:
                return BEYOND_PLAN
            if expert >= 0:
                counts[expert] += 1
    quota = share_out(counts, start, shards, usable, cost)
    base = start[0]
    problem = 0
    for t in range(tokens):
        for k in range(top_k):
            expert = topk_ids[t, k]
            if expert < 0:
                choice[t * top_k + k] = ABSENT
                continue
            at, last = start[expert], start[expert + 1]
            while at < last and quota[at - base] == 0:
                at += 1
            if at == last:
                choice[t * top_k + k] = UNPLACED
                problem = UNPLACED
            else:
                quota[at - base] -= 1
                choice[t * top_k + k] = shards[at]
    return problem


@compiled()
def share_out(counts, start, shards, usable, cost):  # type: ignore[no-untyped-def]
    """Rows of each replica, int32 [R]: those of its expert, counts [E], shared out."""
    base = start[0]
    quota = np.zeros(start[-1] - base, np.int32)
    seconds = np.zeros(usable.shape[0])
    choices = np.zeros(counts.shape[0], np.int32)
    for expert in range(counts.shape[0]):
        for at in range(start[expert], start[expert + 1]):
            choices[expert] += usable[shards[at]]
        if choices[expert] == 1:
            place(expert, counts[expert], start, shards, usable, cost, quota, seconds)
    for expert in np.argsort(-counts, kind="mergesort"):
        if choices[expert] > 1:
            place(expert, counts[expert], start, shards, usable, cost, quota, seconds)
    return quota


@compiled()
def place(expert, rows, start, shards, usable, cost, quota, seconds):  # type: ignore[no-untyped-def]
    """Give an expert's rows, block by block, to the replica that would finish them first."""
    base = start[0]
    while rows > 0:
        block = min(rows, BLOCK_ROWS)
        best, best_finish = -1, np.inf
        for at in range(start[expert], start[expert + 1]):
            shard = shards[at]
            if not usable[shard]:
                continue
            finish = seconds[shard] + block * cost[shard, 2]
            if quota[at - base] == 0:
                finish += cost[shard, 1]
            if best < 0 or finish < best_finish:
                best, best_finish = at, finish
        quota[best - base] += block
        seconds[shards[best]] = best_finish
        rows -= block
