# ruff: noqa: PLR0912 - compiled loops take arrays one by one
"""Makes a layer's placement fit a time goal by few copies: the local search behind every plan.

Works on what is stuck: the tokens that no split can serve within the goal (`flow.shortage`). They
sit on devices from which no chain of replicas leads to a device with time to spare. A change helps
only if it takes load from such a device to one on the other side; it is either

- a new link: a copy of a stuck expert in an empty slot, or over a replica its expert can spare, or
- an exchange: two experts swap devices, or one moves to an empty slot.

The changes that promise most per copy are tried exactly, the best is kept, until nothing is stuck,
nothing helps or the budget is spent. Copies of experts that the device held before are free.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from native.kernel import entry, kernel
from placement.problem import LayerProblem, Problem, layer_of
from placement.search.draft import holds
from placement.search.flow import DRAINED, shortage, solve
from placement.search.replicas import Flow, new_flow, slot_flow
from placement.types import EMPTY, FloatArray, IntArray

SOURCES = 4
"""Devices with stuck load considered per step."""

TARGETS = 6
"""Devices with time to spare considered per step."""

TRIALS = 8
"""Changes evaluated exactly per step."""

FREE_COPY = 0.2
"""What a change that needs no copy counts as, when gains are compared per copy."""

LEAST_GAIN = 0.004
"""A change must free at least this fraction of what is stuck."""


KEPT_PROMISE = 0.9
"""A change that frees this part of what it promised is taken at once."""

HOPE = 0.3
"""Give up once the steps left, each as good as the last, would free less than this of the rest."""


class Limits(NamedTuple):
    """What the search may spend; one entry for each layer."""

    copies: NDArray[np.int64]
    """[L] copies to load at most."""
    least_gain: FloatArray
    """[L] tokens that a copy must free to be worth it."""
    steps: NDArray[np.int64]
    """[L] changes for each goal at most."""


class Search(NamedTuple):
    """Scratch for one layer's search, reused over layers."""

    promise: FloatArray
    """[TRIALS] expected gain per copy of each candidate, best first."""
    change: NDArray[np.int64]
    """[TRIALS, 5] source device and slot, target device and slot, 1 for an exchange."""
    pool: FloatArray
    """[D] tokens stuck on a device and its neighbours, or those that they could still take."""
    sources: NDArray[np.int64]
    """[SOURCES] devices to relieve."""
    targets: NDArray[np.int64]
    """[TARGETS] devices to use."""
    rank: FloatArray
    """[D] scratch: keys by which sources and targets are picked."""
    served: FloatArray
    """[S] tokens of each slot of one source."""


@kernel
def new_search(D: int, S: int) -> Search:
    """Scratch for layers on D devices."""
    return Search(
        np.empty(TRIALS),
        np.empty((TRIALS, 5), np.int64),
        np.empty(D),
        np.empty(SOURCES, np.int64),
        np.empty(TARGETS, np.int64),
        np.empty(D),
        np.empty(S),
    )


@entry
def improve_layers(
    experts: IntArray, p: Problem, current: IntArray, goals: FloatArray, limits: Limits
) -> None:
    """Improves `experts` [L, D, S] within `limits`.

    goals: [G, L] time goals, met one after the other. current: [L, D, S'] what devices hold,
    besides `experts`; copies of these are free. S' = 0 says that all copies are.
    """
    L, D, S = experts.shape
    E = p.load.shape[1]
    f = new_flow(E, D, S)
    q = new_search(D, S)
    resident = np.zeros((D, E if current.shape[2] > 0 else 0), np.bool_)
    for layer in range(L):
        left = limits.copies[layer]
        if left == 0:
            continue
        if current.shape[2] > 0:
            resident[:] = False
            mark_residents(experts[layer], resident)
            mark_residents(current[layer], resident)
        for stage in range(goals.shape[0]):
            left -= improve(
                f, q, experts[layer], layer_of(p, layer), resident, goals[stage, layer],
                left, limits.least_gain[layer], limits.steps[layer],
            )  # fmt: skip


@kernel
def mark_residents(experts: IntArray, resident: NDArray[np.bool_]) -> None:
    """Marks in resident [D, E] what experts [D, S] holds."""
    for d in range(experts.shape[0]):
        for s in range(experts.shape[1]):
            if experts[d, s] != EMPTY:
                resident[d, experts[d, s]] = True


@kernel
def improve(
    f: Flow,
    q: Search,
    experts: IntArray,
    p: LayerProblem,
    resident: NDArray[np.bool_],
    goal: float,
    budget: int,
    least_gain: float,
    steps: int,
) -> int:
    """Changes `experts` [D, S] until all tokens fit within `goal`; returns the copies spent.

    resident: [D, E] experts a device holds anyway; copying these is free. An empty second axis
    means that copies cost nothing at all. least_gain: tokens a copy must free to be worth it.
    """
    speed = p.speed
    drained = DRAINED * p.load.sum()
    solve(f, experts, p)
    stuck = shortage(f, drained, goal, speed)
    spent = 0
    for step in range(steps):
        if stuck <= least_gain:
            break
        found = find_changes(f, q, experts, p, resident, goal)
        best = -1
        most = 0.0
        for k in range(found):
            change = q.change[k]
            cost = copies_needed(experts, change, resident)
            if spent + cost > budget:
                continue
            e, g = apply(experts, change)
            solve(f, experts, p)
            gain = stuck - shortage(f, drained, goal, speed)
            undo(experts, change, e, g)
            weight = max(cost, FREE_COPY)
            if gain <= max(LEAST_GAIN * stuck, least_gain * cost) or gain <= most * weight:
                continue
            most = gain / weight
            best = k
            # As good as promised, and no other promises more: look no further.
            if gain >= stuck * (1 - 1e-9) or most >= KEPT_PROMISE * q.promise[k]:
                break
        if best < 0:
            break
        spent += copies_needed(experts, q.change[best], resident)
        apply(experts, q.change[best])
        solve(f, experts, p)
        before = stuck
        stuck = shortage(f, drained, goal, speed)
        if (before - stuck) * (steps - step) < HOPE * stuck:
            break
    return spent


@kernel
def copies_needed(experts: IntArray, change: NDArray[np.int64], resident: NDArray[np.bool_]) -> int:
    """Copies to load for one change."""
    if resident.shape[1] == 0:
        return 0
    a, sa, b, sb, exchange = change[0], change[1], change[2], change[3], change[4]
    cost = 0 if resident[b, experts[a, sa]] else 1
    if exchange and experts[b, sb] != EMPTY and not resident[a, experts[b, sb]]:
        cost += 1
    return cost


@kernel
def apply(experts: IntArray, change: NDArray[np.int64]) -> tuple[int, int]:
    """Makes a change; returns what `undo` needs."""
    a, sa, b, sb, exchange = change[0], change[1], change[2], change[3], change[4]
    e = experts[a, sa]
    g = experts[b, sb]
    experts[b, sb] = e
    if exchange:
        experts[a, sa] = g
    return e, g


@kernel
def undo(experts: IntArray, change: NDArray[np.int64], e: int, g: int) -> None:
    experts[change[0], change[1]] = e
    experts[change[2], change[3]] = g


@kernel
def find_changes(
    f: Flow,
    q: Search,
    experts: IntArray,
    p: LayerProblem,
    resident: NDArray[np.bool_],
    goal: float,
) -> int:
    """Fills q.promise and q.change with the most promising changes; returns how many."""
    n_sources, n_targets = pick_devices(f, q, p.speed, goal)
    slots, load = p.slots, p.load
    free = resident.shape[1] == 0
    q.promise[:] = 0.0
    found = 0
    for i in range(n_sources):
        a = q.sources[i]
        excess = q.pool[a]
        for sa in range(slots[a]):
            if experts[a, sa] != EMPTY:
                q.served[sa] = slot_flow(f, experts, load, a, sa)
        for j in range(n_targets):
            b = q.targets[j]
            room = q.pool[b]
            for sb in range(slots[b]):
                g = experts[b, sb]
                freed = 0.0
                droppable = True
                fetch = 0.0
                if g != EMPTY:
                    freed = slot_flow(f, experts, load, b, sb)
                    droppable = f.copies[g] > p.min_copies
                    fetch = 0.0 if free or resident[a, g] else 1.0
                movable = g == EMPTY or not holds(experts, a, g)
                for sa in range(slots[a]):
                    e = experts[a, sa]
                    if e == EMPTY:
                        continue
                    bring = 0.0 if free or resident[b, e] else 1.0
                    link = 0.0
                    if droppable:
                        link = min(q.served[sa], excess, room + freed) - freed
                        link /= max(bring, FREE_COPY)
                    shift = q.served[sa] - freed
                    swap = 0.0
                    if movable:
                        swap = min(shift, excess) - max(shift - room, 0.0)
                        swap /= max(bring + fetch, FREE_COPY)
                    if max(link, swap) > q.promise[TRIALS - 1] and not holds(experts, b, e):
                        if link > q.promise[TRIALS - 1]:
                            found = keep(q, link, a, sa, b, sb, 0, found)
                        if swap > q.promise[TRIALS - 1]:
                            found = keep(q, swap, a, sa, b, sb, 1, found)
    return found


@kernel
def keep(
    q: Search, gain: float, a: int, sa: int, b: int, sb: int, exchange: int, found: int
) -> int:
    """Inserts a candidate into the ranking."""
    k = TRIALS - 1
    while k > 0 and q.promise[k - 1] < gain:
        q.promise[k] = q.promise[k - 1]
        for field in range(5):
            q.change[k, field] = q.change[k - 1, field]
        k -= 1
    q.promise[k] = gain
    q.change[k, 0] = a
    q.change[k, 1] = sa
    q.change[k, 2] = b
    q.change[k, 3] = sb
    q.change[k, 4] = exchange
    return min(found + 1, TRIALS)


@kernel
def pick_devices(f: Flow, q: Search, speed: FloatArray, goal: float) -> tuple[int, int]:
    """Picks the devices with most stuck load and those with most to spare, after `shortage`.

    Returns how many of each.
    """
    sum_groups(f, q, speed, goal)
    for d in range(speed.shape[0]):
        q.rank[d] = f.load[d] - goal * speed[d]
    n_sources = pick_largest(q.rank, q.sources)
    for d in range(speed.shape[0]):
        # Prefer a device with time of its own; it needs no chain.
        q.rank[d] = q.pool[d] + goal * speed[d] - f.load[d] if f.seen[d] else 0.0
    return n_sources, pick_largest(q.rank, q.targets)


@kernel
def pick_largest(rank: FloatArray, picked: NDArray[np.int64]) -> int:
    """Fills `picked` with the places of the largest positive values, which it erases."""
    for n in range(picked.shape[0]):
        best = 0
        for d in range(1, rank.shape[0]):
            if rank[d] > rank[best]:
                best = d
        if rank[best] <= 0:
            return n
        picked[n] = best
        rank[best] = 0.0
    return picked.shape[0]


@kernel
def sum_groups(f: Flow, q: Search, speed: FloatArray, goal: float) -> None:
    """q.pool [D]: tokens stuck in a device's group, or those its group could still take.

    A group is joined by replicas, on one side of the cut: devices that can reach spare time
    (`f.seen`), or devices that cannot.
    """
    D = speed.shape[0]
    for d in range(D):
        f.order[d] = -1
    for root in range(D):
        if f.order[root] >= 0:
            continue
        f.used[:] = False
        f.queue[0] = root
        f.order[root] = root
        n = 1
        k = 0
        pool = 0.0
        while k < n:
            d = f.queue[k]
            k += 1
            miss = f.load[d] - goal * speed[d]
            pool += max(-miss if f.seen[root] else miss, 0.0)
            for at in range(f.begin[d], f.begin[d + 1]):
                i = f.owner[f.on[at]]
                if f.used[i]:
                    continue
                f.used[i] = True
                for stub in range(f.first[i], f.first[i + 1]):
                    other = f.device[stub]
                    if f.seen[other] == f.seen[root] and f.order[other] < 0:
                        f.order[other] = root
                        f.queue[n] = other
                        n += 1
        for k in range(n):
            q.pool[f.queue[k]] = pool
