
"""Splits the tokens of every expert over its replicas so that the slowest device is fastest.

Algorithm: exact water-filling of one replicated expert at a time (fill the least utilised of its
devices first, up to a common level), swept over the experts until no flow moves any more. This is
block coordinate descent on sum(load^2 / speed), whose optimum is the lexicographic min-max of
utilisation, which is what a weighted fair share is.

Invariants: the flows of an expert sum to its count; a device without the expert gets none.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import ArrayLike

from placement.types import FloatArray, IntArray
from placement.validation import check_experts, check_load, check_speed

MAX_SWEEPS = 400
"""Sweeps after which water-filling stops even if flow still moves."""

SWEEP_TOLERANCE = 1e-7
"""Water-filling stops once a sweep moves less than this fraction of all tokens."""


def split_tokens(experts: ArrayLike, counts: ArrayLike, speed: ArrayLike) -> FloatArray:
    """Shares the counted tokens out over the replicas, minimising the slowest device's time.

    Args:
        experts: int [L, D, S] expert id per slot, -1 for empty.
        counts: float [L, E] tokens per expert.
        speed: float [D] relative speed, > 0.

    Returns:
        float64 [L, D, S] tokens per slot.

    Raises:
        ValueError: bad shapes or values, or an expert with tokens that no device holds.
    """
    load = check_load(counts, "counts")
    rate = check_speed(speed)
    placed = check_experts(experts, load.shape[0], rate.shape[0], load.shape[1], "experts")
    shares, missing = split_layers(placed, load, rate)
    if missing[0] >= 0:
        raise ValueError(f"experts: layer {missing[0]} holds no copy of expert {missing[1]}")
    return shares


@njit(cache=True)
def split_layers(
    experts: IntArray, counts: FloatArray, speed: FloatArray
) -> tuple[FloatArray, tuple[int, int]]:
    """`split_tokens` without checks; the pair names a layer and expert left without a device."""
    L, D, S = experts.shape
    E = counts.shape[1]
    shares = np.zeros((L, D, S))
    start = np.empty(E + 1, np.int64)
    device = np.empty(D * S, np.int64)
    slot = np.empty(D * S, np.int64)
    flow = np.empty(D * S)
    load = np.empty(D)
    order = np.empty(D, np.int64)
    for layer in range(L):
        list_replicas(experts[layer], start, device, slot)
        for e in range(E):
            if start[e] == start[e + 1] and counts[layer, e] > 0:
                return shares, (layer, e)
        water_fill(counts[layer], speed, start, device, flow, load, order)
        for r in range(start[E]):
            shares[layer, device[r], slot[r]] = flow[r]
    return shares, (-1, -1)


@njit(cache=True)
def list_replicas(experts, start, device, slot):  # type: ignore[no-untyped-def]
    """Lists replicas expert by expert: those of e are start[e] .. start[e + 1]."""
    D, S = experts.shape
    E = start.shape[0] - 1
    start[:] = 0
    for d in range(D):
        for s in range(S):
            if experts[d, s] >= 0:
                start[experts[d, s] + 1] += 1
    for e in range(E):
        start[e + 1] += start[e]
    for d in range(D):
        for s in range(S):
            e = experts[d, s]
            if e >= 0:
                device[start[e]] = d
                slot[start[e]] = s
                start[e] += 1
    for e in range(E, 0, -1):
        start[e] = start[e - 1]
    start[0] = 0


@njit(cache=True)
def water_fill(counts, speed, start, device, flow, load, order):  # type: ignore[no-untyped-def]
    """Fills `flow` (per replica) and `load` (per device) from scratch."""
    E = counts.shape[0]
    load[:] = 0.0
    total = 0.0
    for e in range(E):
        total += counts[e]
        for r in range(start[e], start[e + 1]):
            flow[r] = counts[e] / (start[e + 1] - start[e])
            load[device[r]] += flow[r]
    for _ in range(MAX_SWEEPS):
        moved = 0.0
        for e in range(E):
            if start[e + 1] - start[e] > 1:
                moved += fill_expert(
                    counts[e], speed, start[e], start[e + 1], device, flow, load, order
                )
        if moved <= SWEEP_TOLERANCE * total:
            break


@njit(cache=True)
def fill_expert(tokens, speed, first, last, device, flow, load, order):  # type: ignore[no-untyped-def]
    """Water-fills one expert exactly, others fixed. Returns the tokens that changed device."""
    n = last - first
    for i in range(n):
        d = device[first + i]
        load[d] -= flow[first + i]
        level = load[d] / speed[d]
        j = i - 1
        while j >= 0 and load[device[order[j]]] / speed[device[order[j]]] > level:
            order[j + 1] = order[j]
            j -= 1
        order[j + 1] = first + i
    held = tokens
    rate = 0.0
    level = 0.0
    used = n
    for i in range(n):
        d = device[order[i]]
        held += load[d]
        rate += speed[d]
        level = held / rate
        if i + 1 < n and level <= load[device[order[i + 1]]] / speed[device[order[i + 1]]]:
            used = i + 1
            break
    moved = 0.0
    for i in range(n):
        r = order[i]
        d = device[r]
        new = max(level * speed[d] - load[d], 0.0) if i < used else 0.0
        moved += abs(new - flow[r])
        flow[r] = new
        load[d] += new
    return moved
