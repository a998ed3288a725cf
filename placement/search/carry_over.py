"""Carries a placement over to new slots: keeps what fits, copies only what must be.

Some experts may then be on fewer devices than the plan demands, because a device or a slot is gone.
Hottest first, each gets an empty slot, or that of an expert with copies to spare.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from native.kernel import entry, kernel
from placement.problem import LayerProblem, Problem, layer_of, with_load
from placement.search.draft import holds
from placement.search.flow import DRAINED, shortage, solve
from placement.search.replicas import Flow, new_flow, slot_flow
from placement.types import EMPTY, FloatArray, IntArray

TRIALS = 8
"""Slots tried exactly for each missing copy."""

DISPLACED = 0.5
"""What tokens of a displaced replica count, before trying: not all of them stay here."""


@entry
def carry_layers(p: Problem, current: IntArray, experts: IntArray) -> NDArray[np.int64]:
    """Fills `experts` [L, D, S] with what fits of `current` [L, D, S'].

    Returns [L] the copies missing for `min_copies` of every expert.
    """
    load, slots = p.load, p.slots
    missing = np.zeros(load.shape[0], np.int64)
    copies = np.empty(load.shape[1], np.int64)
    for layer in range(load.shape[0]):
        count_all(current[layer], copies)
        for d in range(experts.shape[1]):
            keep_residents(
                load[layer], slots[layer, d], current[layer, d], experts[layer, d], copies
            )
        for e in range(load.shape[1]):
            missing[layer] += max(p.min_copies - copies[e], 0)
    return missing


@entry
def house_layers(p: Problem, rows: NDArray[np.int64], experts: IntArray) -> None:
    """Gives every expert `min_copies` slots in the layers `rows` of `experts` [L, D, S]."""
    load = p.load
    E = load.shape[1]
    f = new_flow(E, experts.shape[1], experts.shape[2])
    copies = np.empty(E, np.int64)
    housed = np.empty(E)
    for layer in rows:
        plan = experts[layer]
        count_all(plan, copies)
        for e in range(E):
            housed[e] = load[layer, e] if copies[e] > 0 else 0.0
        # One copy of every expert first, then the further ones: slots may not suffice otherwise.
        wanted = 1
        while wanted <= p.min_copies:
            hottest = -1
            for e in range(E):
                if copies[e] < wanted and (hottest < 0 or load[layer, e] > load[layer, hottest]):
                    hottest = e
            if hottest < 0:
                wanted += 1
                continue
            housed[hottest] = load[layer, hottest]
            found = house(f, hottest, with_load(layer_of(p, layer), housed), wanted, copies, plan)
            if not found:
                # No device can take it: only possible for further copies, in tight slots.
                copies[hottest] = wanted


@kernel
def count_all(experts: IntArray, copies: NDArray[np.int64]) -> None:
    """Fills copies [E] from experts [D, S]."""
    copies[:] = 0
    for d in range(experts.shape[0]):
        for s in range(experts.shape[1]):
            if experts[d, s] != EMPTY:
                copies[experts[d, s]] += 1


@kernel
def house(
    f: Flow,
    e: int,
    p: LayerProblem,
    wanted: int,
    copies: NDArray[np.int64],
    experts: IntArray,
) -> bool:
    """Gives e one more slot where least load is stuck then; False if there is none.

    It takes an empty slot, or that of an expert with more than `wanted` copies. The least busy
    such slots are tried exactly.
    """
    load, speed, slots = p.load, p.speed, p.slots
    D = speed.shape[0]
    tokens = load[e]
    load[e] = 0.0
    solve(f, experts, p)
    load[e] = tokens
    level = np.full(TRIALS, np.inf)
    device = np.full(TRIALS, -1)
    slot = np.zeros(TRIALS, np.int64)
    for d in range(D):
        if holds(experts, d, e):
            continue
        for s in range(slots[d]):
            g = experts[d, s]
            if g >= 0 and copies[g] <= wanted:
                continue
            busy = (f.load[d] + tokens / (copies[e] + 1)) / speed[d]
            if g >= 0:
                busy += slot_flow(f, experts, load, d, s) / speed[d] * DISPLACED
            if busy >= level[TRIALS - 1]:
                continue
            k = TRIALS - 1
            while k > 0 and level[k - 1] > busy:
                level[k] = level[k - 1]
                device[k] = device[k - 1]
                slot[k] = slot[k - 1]
                k -= 1
            level[k] = busy
            device[k] = d
            slot[k] = s
    best = -1
    least = np.inf
    total = load.sum()
    for k in range(TRIALS):
        if device[k] < 0:
            break
        g = experts[device[k], slot[k]]
        experts[device[k], slot[k]] = e
        solve(f, experts, p)
        stuck = shortage(f, DRAINED * total, p.bound, speed)
        experts[device[k], slot[k]] = g
        if stuck < least * (1 - 1e-9):
            least = stuck
            best = k
    if best < 0:
        return False
    g = experts[device[best], slot[best]]
    if g >= 0:
        copies[g] -= 1
    experts[device[best], slot[best]] = e
    copies[e] += 1
    return True


@kernel
def keep_residents(
    load: FloatArray,
    slots: int,
    current: IntArray,
    experts: IntArray,
    copies: NDArray[np.int64],
) -> None:
    """Keeps one device's residents, in their slots where these remain.

    If too many: those that live elsewhere too fall first, then the coldest.
    """
    n = 0
    for s in range(current.shape[0]):
        if current[s] >= 0:
            n += 1
    dropped = np.zeros(current.shape[0], np.bool_)
    while n > slots:
        worst = -1
        for s in range(current.shape[0]):
            if current[s] < 0 or dropped[s]:
                continue
            if worst < 0 or cheaper(current[s], current[worst], load, copies):
                worst = s
        dropped[worst] = True
        copies[current[worst]] -= 1
        n -= 1
    for s in range(min(slots, current.shape[0])):
        if current[s] >= 0 and not dropped[s]:
            experts[s] = current[s]
    free = 0
    for s in range(slots, current.shape[0]):
        if current[s] >= 0 and not dropped[s]:
            while experts[free] >= 0:
                free += 1
            experts[free] = current[s]


@kernel
def cheaper(x: int, y: int, load: FloatArray, copies: NDArray[np.int64]) -> bool:
    """Whether to drop a replica of expert x rather than one of y."""
    if (copies[x] == 1) != (copies[y] == 1):
        return bool(copies[x] > 1)
    return bool(load[x] * copies[y] < load[y] * copies[x])
