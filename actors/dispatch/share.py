"""Which replica computes each choice of a batch: the split by measured cost. Numba only.

Experts with one replica have no choice. The others are placed one after the other, those with most
rows first: as a whole on the replica that would finish them first, since every shard that computes
a row of an expert has to read all of its weights. Only an expert that is too much for one shard is
divided, by water-filling: its rows finish at the same time on all replicas that take some. Then
`chains` evens the shards out.

Costs are seconds on this batch's true counts, see `placement.cost_model`. Everything is
deterministic: equal batches, shards and costs give equal choices.
"""

import numpy as np

from actors.dispatch.chains import even_out, new_links, take
from native.compiled import compiled

UNPLACED = -2
"""Marks an assignment whose expert has no usable replica."""
BEYOND_PLAN = -3
"""An expert id that the plan does not have."""
ABSENT = -1
"""Marks a padded choice (topk id below 0): nobody computes it."""

WHOLE_READS = 2.0
"""An expert whose rows cost less than reading it this often is not divided at first."""
SORTED_ROWS = 64
"""Experts with more rows than this are placed before all others, in no particular order."""


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


@compiled(error_model="numpy")
def share_out(counts, start, shards, usable, cost):  # type: ignore[no-untyped-def]
    """Rows of each replica, int32 [R]: those of its expert, counts [E], shared out."""
    quota = np.zeros(start[-1] - start[0], np.int32)
    links = new_links(counts.shape[0], quota.shape[0], usable.shape[0])
    for shard in range(usable.shape[0]):
        links.seconds[shard] = cost[shard, 0] if usable[shard] else np.inf
    linking = list_links(counts, start, shards, usable, cost, quota, links)
    if linking == 0:
        return quota
    goal = undivided_level(links, linking, cost)
    for expert in by_rows(links.rows[:linking]):
        fill(links, expert, goal, cost)
    even_out(links, linking, cost)
    for stub in range(links.first[linking]):
        quota[links.at[stub]] = links.quota[stub]
    return quota


@compiled(error_model="numpy")
def list_links(  # type: ignore[no-untyped-def]
    counts, start, shards, usable, cost, quota, links
):
    """Fill the quota of experts without a choice; list the others in `links`. Returns how many.

    Shards with infinite costs take an expert only where no other usable shard holds it.
    """
    linking = 0
    links.first[0] = 0
    for expert in range(counts.shape[0]):
        rows = counts[expert]
        if rows == 0:
            continue
        first = links.first[linking]
        stub = first
        last_resort = -1
        for at in range(start[expert], start[expert + 1]):
            shard = shards[at]
            if not usable[shard]:
                continue
            if cost[shard, 2] < np.inf:
                links.at[stub] = at - start[0]
                links.shard[stub] = shard
                links.owner[stub] = linking
                stub += 1
            elif last_resort < 0 or links.busy[shard] < links.busy[shards[last_resort]]:
                last_resort = at
        if stub > first + 1:
            links.rows[linking] = rows
            linking += 1
            links.first[linking] = stub
        elif stub == first + 1:
            shard = links.shard[first]
            quota[links.at[first]] = rows
            links.busy[shard] += rows
            links.seconds[shard] += cost[shard, 1] + rows * cost[shard, 2]
        elif last_resort >= 0:
            quota[last_resort - start[0]] = rows
            links.busy[shards[last_resort]] += rows
    return linking


@compiled(error_model="numpy")
def by_rows(rows):  # type: ignore[no-untyped-def]
    """Indices of `rows` from most to least, by counting; those of `SORTED_ROWS` or more first."""
    ends = np.zeros(SORTED_ROWS + 2, np.int32)
    for count in rows:
        ends[SORTED_ROWS + 1 - min(count, SORTED_ROWS)] += 1
    for key in range(SORTED_ROWS + 1):
        ends[key + 1] += ends[key]
    order = np.empty(rows.shape[0], np.int32)
    for i in range(rows.shape[0]):
        key = SORTED_ROWS - min(rows[i], SORTED_ROWS)
        order[ends[key]] = i
        ends[key] += 1
    return order


@compiled(error_model="numpy")
def undivided_level(links, linking, cost):  # type: ignore[no-untyped-def]
    """Time of all shards if rows could be shared out freely and every expert were read once."""
    total, rate, read_rows = 0.0, 0.0, 0.0
    for shard in range(cost.shape[0]):
        row_s = cost[shard, 2]
        if links.seconds[shard] < np.inf:
            total += links.seconds[shard] / row_s
            rate += 1.0 / row_s
            read_rows = max(read_rows, cost[shard, 1] / row_s)
    for expert in range(linking):
        total += links.rows[expert] + read_rows
    return total / rate


@compiled(error_model="numpy", inline="always")
def fill(links, expert, goal, cost):  # type: ignore[no-untyped-def]
    """Place one expert: whole if it is small or done before `goal`, else on several replicas."""
    first, last = links.first[expert], links.first[expert + 1]
    rows = links.rows[expert]
    best, soonest = -1, np.inf
    for stub in range(first, last):
        shard = links.shard[stub]
        finish = links.seconds[shard] + cost[shard, 1] + rows * cost[shard, 2]
        if finish < soonest:
            best, soonest = stub, finish
    shard = links.shard[best]
    if soonest <= goal or rows * cost[shard, 2] <= WHOLE_READS * cost[shard, 1]:
        take(links, best, rows, cost)
        return
    level = fill_level(links, expert, cost)
    left = rows
    for stub in range(first, last):
        shard = links.shard[stub]
        spare = level - links.seconds[shard] - cost[shard, 1]
        if spare > 0.0 and left > 0:
            part = min(left, int(spare / cost[shard, 2]))
            if part > 0:
                take(links, stub, part, cost)
                left -= part
    if left > 0:
        take(links, best, left, cost)


@compiled(error_model="numpy")
def fill_level(links, expert, cost):  # type: ignore[no-untyped-def]
    """Time at which the expert's replicas finish its rows together, each from when it could."""
    first, last = links.first[expert], links.first[expert + 1]
    order = links.on[: last - first]  # Not in use before all experts are placed.
    for i in range(last - first):
        stub = first + i
        start = links.seconds[links.shard[stub]] + cost[links.shard[stub], 1]
        j = i - 1
        while j >= 0:
            other = links.shard[order[j]]
            if links.seconds[other] + cost[other, 1] <= start:
                break
            order[j + 1] = order[j]
            j -= 1
        order[j + 1] = stub
    held, rate, level = float(links.rows[expert]), 0.0, np.inf
    for i in range(last - first):
        shard = links.shard[order[i]]
        start = links.seconds[shard] + cost[shard, 1]
        if start >= level:
            break
        held += start / cost[shard, 2]
        rate += 1.0 / cost[shard, 2]
        level = held / rate
    return level
