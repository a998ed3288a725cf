# ruff: noqa: PLR0917 - compiled loops take arrays one by one
"""Carries a placement over to new slots: keeps what fits, copies only what must be.

An expert is homeless when fewer devices hold it than the plan demands: its last device left, or the
slot it was in. It gets an empty slot, or the slot of a replica that others can spare, on the device
with the most time left.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from placement.draft import holds
from placement.kernel import entry, kernel
from placement.types import EMPTY, FloatArray, IntArray


@entry
def carry_layers(
    load: FloatArray,
    speed: FloatArray,
    slots: NDArray[np.int64],
    current: IntArray,
    least_copies: int,
    experts: IntArray,
) -> NDArray[np.int64]:
    """Fills `experts` [L, D, S] from `current` [L, D, S']; returns [L] the copies that takes.

    load: [L, E]; speed: [D]; slots: [L, D].
    """
    forced = np.zeros(load.shape[0], np.int64)
    for layer in range(load.shape[0]):
        plan = experts[layer]
        carry_layer(load[layer], speed, slots[layer], current[layer], least_copies, plan)
        for d in range(plan.shape[0]):
            for s in range(plan.shape[1]):
                if plan[d, s] != EMPTY and not holds(current[layer], d, plan[d, s]):
                    forced[layer] += 1
    return forced


@kernel
def carry_layer(
    load: FloatArray,
    speed: FloatArray,
    slots: NDArray[np.int64],
    current: IntArray,
    least_copies: int,
    experts: IntArray,
) -> None:
    """Fills `experts` [D, S] from `current` [D, S'], housing every expert `least_copies` times."""
    E = load.shape[0]
    D = speed.shape[0]
    experts[:] = EMPTY
    copies = np.zeros(E, np.int64)
    for d in range(D):
        for s in range(current.shape[1]):
            if current[d, s] >= 0:
                copies[current[d, s]] += 1
    for d in range(D):
        keep_residents(load, slots[d], current[d], experts[d], copies)
    held = np.zeros(D)
    for d in range(D):
        for s in range(slots[d]):
            if experts[d, s] >= 0:
                held[d] += load[experts[d, s]] / copies[experts[d, s]]
    order = np.arange(E)
    for k in range(1, E):
        e = order[k]
        j = k - 1
        while j >= 0 and copies[e] < least_copies and load[order[j]] < load[e]:
            order[j + 1] = order[j]
            j -= 1
        order[j + 1] = e
    # First one home for everybody, then the further ones: slots may not suffice otherwise.
    for wanted in range(1, least_copies + 1):
        for k in range(E):
            if copies[order[k]] < wanted:
                house(order[k], load, speed, slots, wanted, held, copies, experts)


@kernel
def house(
    e: int,
    load: FloatArray,
    speed: FloatArray,
    slots: NDArray[np.int64],
    wanted: int,
    held: FloatArray,
    copies: NDArray[np.int64],
    experts: IntArray,
) -> None:
    """Gives e one more home, over an expert with more than `wanted` copies if no slot is empty."""
    best = -1
    best_slot = -1
    least = np.inf
    for d in range(speed.shape[0]):
        if holds(experts, d, e):
            continue
        for s in range(slots[d]):
            f = experts[d, s]
            if f >= 0 and copies[f] <= wanted:
                continue
            level = held[d] + load[e] / (copies[e] + 1)
            if f >= 0:
                # Its other replicas must serve what this one did.
                level += load[f] / (copies[f] * (copies[f] - 1))
            if level < least * speed[d]:
                least = level / speed[d]
                best = d
                best_slot = s
    if best < 0:
        return
    f = experts[best, best_slot]
    if f >= 0:
        held[best] -= load[f] / copies[f]
        copies[f] -= 1
    experts[best, best_slot] = e
    copies[e] += 1
    held[best] += load[e] / copies[e]


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
