# ruff: noqa: PLR0912
"""Carries a placement over to new slots: keeps what fits, copies only what would be lost.

An expert loses its home when its last device left or its slot fell away. It gets an empty slot, or
the slot of a redundant replica, on the device with the most spare capacity.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from placement.types import EMPTY


@njit(cache=True)
def carry_layer(load, speed, slots, current, experts):  # type: ignore[no-untyped-def]
    """Fills `experts` [D, S] from `current` [D, S'], adding one copy of each homeless expert.

    Where a device shrank, copies that live elsewhere too are dropped first.
    """
    E = load.shape[0]
    D = speed.shape[0]
    experts[:] = EMPTY
    copies = np.zeros(E, np.int64)
    for d in range(D):
        for s in range(current.shape[1]):
            if current[d, s] >= 0:
                copies[current[d, s]] += 1
    held = np.zeros(D)
    for d in range(D):
        keep_residents(load, slots[d], current[d], experts[d], copies)
        for s in range(slots[d]):
            if experts[d, s] >= 0:
                held[d] += load[experts[d, s]] / copies[experts[d, s]]
    order = np.argsort(-load)
    for i in range(E):
        e = order[i]
        if copies[e] > 0:
            continue
        best = -1
        best_slot = -1
        least = np.inf
        for d in range(D):
            for s in range(slots[d]):
                f = experts[d, s]
                if f < 0 or copies[f] > 1:
                    level = (held[d] + load[e]) / speed[d]
                    if f >= 0:
                        level += load[f] / (copies[f] * (copies[f] - 1)) / speed[d]
                    if level < least:
                        least = level
                        best = d
                        best_slot = s
        f = experts[best, best_slot]
        if f >= 0:
            held[best] -= load[f] / copies[f]
            copies[f] -= 1
        experts[best, best_slot] = e
        held[best] += load[e]
        copies[e] = 1


@njit(cache=True)
def keep_residents(load, slots, current, experts, copies):  # type: ignore[no-untyped-def]
    """Keeps one device's residents: all if they fit, else replicas fall first, then the coldest."""
    n = 0
    for s in range(current.shape[0]):
        if current[s] >= 0:
            n += 1
    dropped = np.zeros(current.shape[0], np.bool_)
    while n > slots:
        worst = -1
        least = np.inf
        for s in range(current.shape[0]):
            e = current[s]
            if e < 0 or dropped[s]:
                continue
            value = load[e] / copies[e]
            if copies[e] == 1:
                value += load.sum() + 1.0
            if value < least:
                least = value
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


@njit(cache=True)
def carry_layers(load, speed, slots, current, experts):  # type: ignore[no-untyped-def]
    """`carry_layer` for every layer: load [L, E], slots [L, D], current [L, D, S']."""
    for layer in range(load.shape[0]):
        carry_layer(load[layer], speed, slots[layer], current[layer], experts[layer])
