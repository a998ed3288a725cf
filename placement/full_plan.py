# ruff: noqa: PLR0912, PLR0915
"""Plans one layer from nothing: how many copies of each expert, and where they go.

Algorithm: the redundant slots go one by one to the expert with the most tokens per copy. Replicated
experts are placed first, on devices that no replica joins yet, so that load can flow between any
two devices; then the others, heaviest first, each to the device with the most remaining capacity
per remaining slot. That rule gives fast devices hot experts and roomy devices many cold ones.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from placement.types import EMPTY

JOINED_PENALTY = 4.0
"""Cost of a replica on a device already joined with the others, in units of device capacity."""

OVERFILL_PENALTY = 10.0
"""Cost per capacity by which a replica overfills its device."""


@njit(cache=True)
def count_replicas(load, devices, spare, copies):  # type: ignore[no-untyped-def]
    """Fills `copies` [E]: at least one each, `spare` more where tokens per copy are highest."""
    E = load.shape[0]
    copies[:] = 1
    for _ in range(spare):
        best = -1
        most = -1.0
        for e in range(E):
            if copies[e] < devices and load[e] / copies[e] > most:
                most = load[e] / copies[e]
                best = e
        if best < 0:
            return
        copies[best] += 1


@njit(cache=True)
def place_layer(load, speed, slots, experts):  # type: ignore[no-untyped-def]
    """Fills `experts` [D, S] (all empty at entry) for one layer's load [E] and slots [D]."""
    E = load.shape[0]
    D = speed.shape[0]
    ideal = load.sum() / speed.sum()
    if ideal <= 0:
        ideal = 1.0
    copies = np.empty(E, np.int64)
    count_replicas(load, D, slots.sum() - E, copies)
    used = np.zeros(D, np.int64)
    held = np.zeros(D)
    shared = np.zeros(D)
    group = np.arange(D)
    holds = np.zeros(D, np.bool_)
    singles = E
    order = np.argsort(-load)
    for i in range(E):
        e = order[i]
        if copies[e] < 2:
            continue
        piece = load[e] / copies[e]
        holds[:] = False
        root = -1
        for copy in range(copies[e]):
            if copy > 0 and slots.sum() - used.sum() <= singles - 1:
                break
            best = -1
            least = np.inf
            for d in range(D):
                if used[d] >= slots[d] or holds[d]:
                    continue
                room = speed[d] * ideal
                cost = shared[d] / room
                if root >= 0 and group[d] == root:
                    cost += JOINED_PENALTY
                if held[d] + piece > room:
                    cost += OVERFILL_PENALTY * (held[d] + piece - room) / room
                if cost < least:
                    least = cost
                    best = d
            if best < 0:
                break
            experts[best, used[best]] = e
            used[best] += 1
            held[best] += piece
            shared[best] += piece
            holds[best] = True
            if root < 0:
                root = group[best]
            merged = group[best]
            for d in range(D):
                if group[d] == merged:
                    group[d] = root
        singles -= 1
    for i in range(E):
        e = order[i]
        if copies[e] > 1:
            continue
        best = -1
        most = -np.inf
        for d in range(D):
            if used[d] < slots[d]:
                density = (speed[d] * ideal - held[d]) / (slots[d] - used[d])
                if density > most:
                    most = density
                    best = d
        experts[best, used[best]] = e
        used[best] += 1
        held[best] += load[e]


@njit(cache=True)
def place_layers(load, speed, slots, experts):  # type: ignore[no-untyped-def]
    """Fills `experts` [L, D, S] for load [L, E], speed [D], slots [L, D]."""
    experts[:] = EMPTY
    for layer in range(load.shape[0]):
        place_layer(load[layer], speed, slots[layer], experts[layer])
