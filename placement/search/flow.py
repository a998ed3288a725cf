"""One layer's tokens as flows from experts to the devices that hold them.

Minimises the slowest device's time for a given placement. Only replicated experts have a choice;
their replicas are the links of a graph that joins devices. Four steps, fast ones first:

1. Water-filling: one expert's tokens go to the least utilised of its devices, up to a common level
   (one step of block coordinate descent on sum(load^2 / speed)).
2. Levelling along a spanning tree: every device passes its surplus to its parent, leaves first, as
   far as flows allow. This carries load across the whole graph at once, where water-filling alone
   needs as many sweeps as the graph is long, squared.
3. Augmenting paths: what still exceeds the goal moves along shortest paths to devices below it.
4. Proof: where no path is left, let A be all devices the slowest one could pass load to, directly
   or not. No flow leaves A, so load(A) / speed(A) bounds every split from below and becomes the
   goal (Newton's method on the parametric maximum flow). Done when the slowest device meets it.

Invariants: flows are >= 0 and sum to each expert's tokens; a device without the expert gets none.
"""

from __future__ import annotations

import numpy as np

from native.kernel import entry, kernel
from placement.problem import LayerProblem, Problem, layer_of
from placement.search.replicas import Flow, list_stubs, new_flow
from placement.types import FloatArray, IntArray

PROOF_TOLERANCE = 2e-5
"""Stop once the slowest device is this close to its proven lower bound, as a fraction."""

MAX_WAVES = 1000
"""Waves of augmenting paths after which the split is taken as it is; dozens are usual at most."""

DRAINED = 1e-12
"""A flow below this fraction of all tokens counts as none."""


@kernel
def solve(f: Flow, experts: IntArray, p: LayerProblem) -> float:
    """Splits one layer over experts [D, S]. Fills `f.flow` and `f.load`.

    Returns the slowest device's time.
    """
    replicated = list_stubs(f, experts, p)
    total = 0.0
    for d in range(p.speed.shape[0]):
        total += f.load[d]
    for i in range(replicated):
        total += p.load[f.expert[i]]
        for stub in range(f.first[i], f.first[i + 1]):
            f.flow[stub] = 0.0
    return settle(f, replicated, total, p.load, p.speed)


@kernel
def settle(f: Flow, replicated: int, total: float, load: FloatArray, speed: FloatArray) -> float:
    """Moves flow until the slowest device is proven slowest; see `solve`."""
    for i in range(replicated):
        fill_expert(f, i, load[f.expert[i]], speed)
    goal = total / speed.sum()
    drained = DRAINED * total
    level_along_tree(f, drained, speed)
    slowest = 0.0
    for _ in range(MAX_WAVES):
        worst = slowest_device(f, speed)
        slowest = f.load[worst] / speed[worst]
        if slowest <= goal * (1 + PROOF_TOLERANCE):
            break
        if send_surplus(f, worst, goal, drained, speed) < 0:
            goal = max(goal, closed_bound(f, worst, drained, speed))
    return slowest


@kernel
def shortage(f: Flow, drained: float, goal: float, speed: FloatArray) -> float:
    """Tokens that no split can serve within `goal`, after `solve`. Moves flow to find out.

    Leaves in `f.seen` the devices that could pass load to one below `goal`; the surplus is stuck
    on the others.
    """
    for _ in range(MAX_WAVES):
        if send_surplus(f, -1, goal, drained, speed) <= drained:
            break
    stuck = 0.0
    for d in range(speed.shape[0]):
        stuck += max(f.load[d] - goal * speed[d], 0.0)
    return stuck


@kernel
def slowest_device(f: Flow, speed: FloatArray) -> int:
    worst = 0
    slowest = -1.0
    for d in range(speed.shape[0]):
        if f.load[d] > slowest * speed[d]:
            slowest = f.load[d] / speed[d]
            worst = d
    return worst


@kernel
def fill_expert(f: Flow, i: int, tokens: float, speed: FloatArray) -> None:
    """Water-fills one replicated expert exactly, the others fixed."""
    first = f.first[i]
    n = f.first[i + 1] - first
    for k in range(n):
        d = f.device[first + k]
        f.load[d] -= f.flow[first + k]
        level = f.load[d] / speed[d]
        j = k - 1
        while j >= 0:
            other = f.device[f.order[j]]
            if f.load[other] <= level * speed[other]:
                break
            f.order[j + 1] = f.order[j]
            j -= 1
        f.order[j + 1] = first + k
    held = tokens
    rate = 0.0
    level = 0.0
    filled = n
    for k in range(n):
        d = f.device[f.order[k]]
        held += f.load[d]
        rate += speed[d]
        level = held / rate
        if k + 1 < n:
            following = f.device[f.order[k + 1]]
            if level * speed[following] <= f.load[following]:
                filled = k + 1
                break
    for k in range(n):
        stub = f.order[k]
        d = f.device[stub]
        f.flow[stub] = 0.0
        if k < filled:
            f.flow[stub] = max(level * speed[d] - f.load[d], 0.0)
            f.load[d] += f.flow[stub]


@kernel
def send_surplus(f: Flow, worst: int, goal: float, drained: float, speed: FloatArray) -> float:
    """One wave: what exceeds `goal` moves along shortest ways to devices below it.

    Returns the tokens moved, or -1 with nothing moved if no way leads from `worst` (if >= 0) to a
    device below `goal`.
    """
    D = speed.shape[0]
    f.used[:] = False
    n = 0
    for d in range(D):
        f.seen[d] = f.load[d] < goal * speed[d]
        if f.seen[d]:
            f.parent[d] = -1
            f.queue[n] = d
            n += 1
    sinks = n
    k = 0
    while k < n:
        d = f.queue[k]
        k += 1
        for at in range(f.begin[d], f.begin[d + 1]):
            own = f.on[at]
            i = f.owner[own]
            if f.used[i]:
                continue
            f.used[i] = True
            for stub in range(f.first[i], f.first[i + 1]):
                above = f.device[stub]
                if f.seen[above] or f.flow[stub] <= drained:
                    continue
                f.seen[above] = True
                f.parent[above] = own
                f.link[above] = stub
                f.queue[n] = above
                n += 1
    if worst >= 0 and not f.seen[worst]:
        return -1.0
    moved = 0.0
    for k in range(sinks, n):
        surplus = f.load[f.queue[k]] - goal * speed[f.queue[k]]
        d = f.queue[k]
        while f.parent[d] >= 0 and surplus > 0:
            surplus = min(surplus, f.flow[f.link[d]])
            d = f.device[f.parent[d]]
        surplus = min(surplus, goal * speed[d] - f.load[d])
        if surplus <= 0:
            continue
        moved += surplus
        f.load[f.queue[k]] -= surplus
        f.load[d] += surplus
        d = f.queue[k]
        while f.parent[d] >= 0:
            f.flow[f.link[d]] -= surplus
            f.flow[f.parent[d]] += surplus
            d = f.device[f.parent[d]]
    return moved


@kernel
def level_along_tree(f: Flow, drained: float, speed: FloatArray) -> None:
    """Passes every device's surplus or deficit to its parent, leaves first, as flows allow."""
    D = speed.shape[0]
    f.seen[:] = False
    f.used[:] = False
    for root in range(D):
        if f.seen[root]:
            continue
        f.seen[root] = True
        f.parent[root] = -1
        f.queue[0] = root
        n = 1
        k = 0
        load = 0.0
        rate = 0.0
        while k < n:
            d = f.queue[k]
            k += 1
            load += f.load[d]
            rate += speed[d]
            for at in range(f.begin[d], f.begin[d + 1]):
                own = f.on[at]
                i = f.owner[own]
                if f.used[i]:
                    continue
                f.used[i] = True
                for stub in range(f.first[i], f.first[i + 1]):
                    child = f.device[stub]
                    # A link that can carry flow neither way joins nothing.
                    if f.seen[child] or f.flow[stub] + f.flow[own] <= drained:
                        continue
                    f.seen[child] = True
                    f.parent[child] = own
                    f.link[child] = stub
                    f.queue[n] = child
                    n += 1
        level = load / rate
        for k in range(n - 1, 0, -1):
            d = f.queue[k]
            up = f.parent[d]
            surplus = f.load[d] - level * speed[d]
            surplus = max(min(surplus, f.flow[f.link[d]]), -f.flow[up])
            f.flow[f.link[d]] -= surplus
            f.load[d] -= surplus
            f.flow[up] += surplus
            f.load[f.device[up]] += surplus


@kernel
def closed_bound(f: Flow, worst: int, drained: float, speed: FloatArray) -> float:
    """load / speed of all devices that `worst` can pass load to: no split makes them faster."""
    f.seen[:] = False
    f.used[:] = False
    f.seen[worst] = True
    f.queue[0] = worst
    n = 1
    k = 0
    load = 0.0
    rate = 0.0
    while k < n:
        d = f.queue[k]
        k += 1
        load += f.load[d]
        rate += speed[d]
        for at in range(f.begin[d], f.begin[d + 1]):
            own = f.on[at]
            i = f.owner[own]
            if f.used[i] or f.flow[own] <= drained:
                continue
            f.used[i] = True
            for stub in range(f.first[i], f.first[i + 1]):
                child = f.device[stub]
                if not f.seen[child]:
                    f.seen[child] = True
                    f.queue[n] = child
                    n += 1
    return load / rate


@entry
def layer_times(experts: IntArray, p: Problem) -> FloatArray:
    """float64 [L]: the slowest device's time under the best split over experts [L, D, S]."""
    L, D, S = experts.shape
    times = np.empty(L)
    f = new_flow(p.load.shape[1], D, S)
    for layer in range(L):
        times[layer] = solve(f, experts[layer], layer_of(p, layer))
    return times
