# ruff: noqa: SIM110 - compiled loops take arrays one by one
"""A layer's placement in the making: what each device holds so far, and how devices are joined.

Shared by the constructions; they differ only in what they place first. Two rules recur:

- A copy of a replicated expert goes where the least movable load is, on a device that no chain of
  replicas joins with the expert's other devices yet: so load can later flow between any two
  devices, by few steps and over several ways.
- A single expert goes to the device with the most remaining capacity per remaining slot: so fast
  devices get hot experts, roomy ones many cold ones, and none runs out of slots or load early.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from native.kernel import kernel
from placement.problem import LayerProblem
from placement.types import EMPTY, FloatArray, IntArray

JOINED_PENALTY = 4.0
"""Cost of a replica on a device already joined with the others, in device capacities."""

LINK_PENALTY = 1.0
"""Cost of load already movable between two devices, in device capacities."""

NEAR_PENALTY = 16.0
"""Cost of a replica in a failure domain that has one already, in device capacities."""

OVERFILL_PENALTY = 10.0
"""Cost of a replica per capacity by which it would overfill its device."""


class Draft(NamedTuple):
    """Scratch for one layer, reused over layers."""

    slots: NDArray[np.int64]
    """[D] slots that may be used."""
    room: FloatArray
    """[D] tokens each device should serve."""
    used: NDArray[np.int64]
    """[D] slots filled."""
    held: FloatArray
    """[D] tokens placed."""
    movable: FloatArray
    """[D] tokens of replicated experts."""
    group: NDArray[np.int64]
    """[D] devices joined by replicas share a group."""
    domain: NDArray[np.int64]
    """[D] failure domain."""
    link: FloatArray
    """[D, D] tokens movable between two devices directly."""
    member: NDArray[np.int64]
    """[D] devices of the expert being placed."""
    density: FloatArray
    """[D] remaining capacity per remaining slot; keys of `heap`."""
    heap: NDArray[np.int64]
    """[D] devices with free slots, densest first."""


@kernel
def new_draft(D: int) -> Draft:
    """Scratch for layers on D devices."""
    return Draft(
        np.empty(D, np.int64),
        np.empty(D),
        np.empty(D, np.int64),
        np.empty(D),
        np.empty(D),
        np.empty(D, np.int64),
        np.empty(D, np.int64),
        np.empty((D, D)),
        np.empty(D, np.int64),
        np.empty(D),
        np.empty(D, np.int64),
    )


@kernel
def reset(a: Draft, p: LayerProblem, time: float) -> None:
    """Empties the draft; each device should be busy for `time`, its constant cost included."""
    a.link[:] = 0.0
    for d in range(p.slots.shape[0]):
        a.slots[d] = p.slots[d]
        a.domain[d] = p.failure_domain[d]
        # A device whose constant cost takes all its time is left a token's worth of room.
        a.room[d] = max(p.speed[d] * time - p.offset[d], 1e-6 * p.speed[d] * time)
        a.used[d] = 0
        a.held[d] = 0.0
        a.movable[d] = 0.0
        a.group[d] = d


@kernel
def place_singles(
    a: Draft, experts: IntArray, load: FloatArray, order: NDArray[np.int64], weight: FloatArray
) -> None:
    """Places one copy of each expert with weight >= 0, in `order`, as `weight` [E] tokens."""
    size = 0
    for d in range(a.slots.shape[0]):
        if a.used[d] < a.slots[d]:
            a.density[d] = (a.room[d] - a.held[d]) / (a.slots[d] - a.used[d])
            a.heap[size] = d
            size += 1
    for at in range(size // 2 - 1, -1, -1):
        sink(a.heap, a.density, at, size)
    for k in range(load.shape[0]):
        e = order[k]
        if weight[e] < 0:
            continue
        d = a.heap[0]
        experts[d, a.used[d]] = e
        a.used[d] += 1
        a.held[d] += weight[e]
        a.member[0] = d
        if a.used[d] < a.slots[d]:
            a.density[d] = (a.room[d] - a.held[d]) / (a.slots[d] - a.used[d])
        else:
            size -= 1
            a.heap[0] = a.heap[size]
        sink(a.heap, a.density, 0, size)


@kernel
def sink(heap: NDArray[np.int64], key: FloatArray, at: int, size: int) -> None:
    """Restores the heap order (largest key first, lowest id among equals) below one entry."""
    while True:
        child = 2 * at + 1
        if child >= size:
            return
        if child + 1 < size and before(heap[child + 1], heap[child], key):
            child += 1
        if not before(heap[child], heap[at], key):
            return
        heap[child], heap[at] = heap[at], heap[child]
        at = child


@kernel
def before(x: int, y: int, key: FloatArray) -> bool:
    return bool(key[x] > key[y] or (key[x] == key[y] and x < y))


@kernel
def place_copies(
    a: Draft, experts: IntArray, e: int, tokens: float, copies: int, members: int
) -> None:
    """Places further copies of expert e, which already sits on a.member[:members].

    Each copy counts as tokens / copies. Stops early where no device is left.
    """
    piece = tokens / copies
    for _ in range(copies - members):
        best = -1
        least = np.inf
        for d in range(a.slots.shape[0]):
            if a.used[d] >= a.slots[d]:
                continue
            cost = a.movable[d]
            if a.held[d] + piece > a.room[d]:
                cost += OVERFILL_PENALTY * (a.held[d] + piece - a.room[d])
            cost /= a.room[d]
            if cost >= least:
                continue
            cost += link_cost(a, d, members)
            if cost < least:
                least = cost
                best = d
        if best < 0:
            break
        experts[best, a.used[best]] = e
        a.used[best] += 1
        a.held[best] += piece
        a.movable[best] += piece
        a.member[members] = best
        members += 1
    join(a, piece, members)


@kernel
def link_cost(a: Draft, d: int, members: int) -> float:
    """Cost of what joins d and the expert's devices already; infinite if d is one of them."""
    linked = 0.0
    joined = 0.0
    near = 0.0
    for k in range(members):
        if a.member[k] == d:
            return np.inf
        linked += a.link[a.member[k], d]
        if a.group[a.member[k]] == a.group[d]:
            joined = JOINED_PENALTY
        if a.domain[a.member[k]] == a.domain[d]:
            near = NEAR_PENALTY
    return joined + near + LINK_PENALTY * linked / a.room[d]


@kernel
def join(a: Draft, piece: float, members: int) -> None:
    """Notes that `piece` tokens can move between any two of a.member[:members]."""
    for k in range(members):
        x = a.member[k]
        for j in range(k):
            y = a.member[j]
            a.link[x, y] += piece
            a.link[y, x] += piece
        if a.group[x] != a.group[a.member[0]]:
            old = a.group[x]
            for d in range(a.group.shape[0]):
                if a.group[d] == old:
                    a.group[d] = a.group[a.member[0]]


@kernel
def fill_spare(
    slots: NDArray[np.int64], experts: IntArray, load: FloatArray, copies: NDArray[np.int32]
) -> None:
    """Gives slots still empty to the hottest experts, per copy, that their device lacks.

    `copies` [E] is scratch.
    """
    D, S = experts.shape
    copies[:] = 0
    for d in range(D):
        for s in range(S):
            if experts[d, s] != EMPTY:
                copies[experts[d, s]] += 1
    for d in range(D):
        for s in range(slots[d]):
            if experts[d, s] != EMPTY:
                continue
            best = -1
            gain = -1.0
            for e in range(load.shape[0]):
                if load[e] > gain * (copies[e] + 1) and not holds(experts, d, e):
                    gain = load[e] / (copies[e] + 1)
                    best = e
            experts[d, s] = best
            if best >= 0:
                copies[best] += 1


@kernel
def holds(experts: IntArray, d: int, e: int) -> bool:
    """Whether device d has expert e."""
    for s in range(experts.shape[1]):
        if experts[d, s] == e:
            return True
    return False
