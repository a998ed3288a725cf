"""Keeps an expert's two hottest replicas in different failure domains.

The constructions already avoid a shared domain; this mends what is left after the local search, by
exchanging the second hottest replica with a like-loaded one of another expert, or an empty slot,
elsewhere. No exchange leaves the other expert with all its replicas in one domain.

With two copies of every expert, and no domain with room for more than one of each, there always is
such an exchange without a move budget: if every expert with a replica outside a domain also had one
inside, then an expert with two inside would need one slot more than the domain has.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from native.kernel import entry, kernel
from placement.problem import LayerProblem, Problem, layer_of
from placement.search.draft import holds
from placement.search.flow import solve
from placement.search.replicas import Flow, new_flow, slot_flow
from placement.types import EMPTY, IntArray

ROUNDS = 4
"""Passes over a layer; each exchange shifts tokens, so another pair may become the hottest."""


@entry
def part_layers(p: Problem, budget: NDArray[np.int64], experts: IntArray) -> None:
    """Changes `experts` [L, D, S] by at most budget [L] copies per layer."""
    L, D, S = experts.shape
    E = p.load.shape[1]
    domain = p.failure_domain
    f = new_flow(E, D, S)
    for layer in range(L):
        left = budget[layer]
        for _ in range(ROUNDS):
            solve(f, experts[layer], layer_of(p, layer))
            found = False
            for i in range(E):
                if i >= replicated(f):
                    break
                hottest, second = two_hottest(f, i)
                if left >= 2 and domain[f.device[hottest]] == domain[f.device[second]]:
                    found = True
                    left -= exchange(
                        f, i, f.device[hottest], second, layer_of(p, layer), experts[layer]
                    )
            if not found:
                break


@kernel
def replicated(f: Flow) -> int:
    """Number of replicated experts in the solved layer."""
    n = 0
    for e in range(f.copies.shape[0]):
        if f.copies[e] > 1:
            n += 1
    return n


@kernel
def two_hottest(f: Flow, i: int) -> tuple[int, int]:
    """The stubs of the i-th replicated expert with most and second most tokens."""
    first = f.first[i]
    second = f.first[i] + 1
    if f.flow[second] > f.flow[first]:
        first, second = second, first
    for stub in range(f.first[i] + 2, f.first[i + 1]):
        if f.flow[stub] > f.flow[first]:
            first, second = stub, first
        elif f.flow[stub] > f.flow[second]:
            second = stub
    return first, second


@kernel
def exchange(
    f: Flow,
    i: int,
    keep: int,
    stub: int,
    p: LayerProblem,
    experts: IntArray,
) -> int:
    """Moves one replica out of the domain of device `keep`; returns the copies that takes."""
    load, speed, slots, domain = p.load, p.speed, p.slots, p.failure_domain
    a = f.device[stub]
    sa = f.slot[stub]
    e = f.expert[i]
    best = -1
    best_slot = -1
    best_shift = 0.0
    least = np.inf
    for b in range(speed.shape[0]):
        if domain[b] == domain[keep] or holds(experts, b, e):
            continue
        for sb in range(slots[b]):
            g = experts[b, sb]
            back = 0.0
            if g != EMPTY:
                if holds(experts, a, g) or only_there(f, g, b, domain[a], domain):
                    continue
                back = slot_flow(f, experts, load, b, sb)
            shift = f.flow[stub] - back
            harm = max((f.load[b] + shift) / speed[b], (f.load[a] - shift) / speed[a])
            if harm < least:
                least = harm
                best = b
                best_slot = sb
                best_shift = shift
    if best < 0:
        return 0
    g = experts[best, best_slot]
    if g != EMPTY and f.copies[g] > 1:
        relocate(f, g, best, a, sa)
    relocate(f, e, a, best, best_slot)
    experts[best, best_slot] = e
    experts[a, sa] = g
    f.load[best] += best_shift
    f.load[a] -= best_shift
    return 1 if g == EMPTY else 2


@kernel
def only_there(f: Flow, g: int, b: int, there: int, domain: NDArray[np.int64]) -> bool:
    """Whether expert g has replicas besides device b's, and all of them in domain `there`."""
    if f.copies[g] == 1:
        return False
    i = f.rank[g]
    for stub in range(f.first[i], f.first[i + 1]):
        if f.device[stub] != b and domain[f.device[stub]] != there:
            return False
    return True


@kernel
def relocate(f: Flow, e: int, before: int, after: int, slot: int) -> None:
    """Notes that the replica of `e` on device `before` is in a slot of device `after`."""
    i = f.rank[e]
    for stub in range(f.first[i], f.first[i + 1]):
        if f.device[stub] == before:
            f.device[stub] = after
            f.slot[stub] = slot
            return
