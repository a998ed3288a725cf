"""Plans layers from nothing: builds them in several ways and keeps what stands up best.

A plan must do two things: balance the load it was given, and leave enough room to move when the
next batches differ. So each construction is first improved until it meets the goal on the given
load, then judged by how well the given load, shaken by a few fixed random factors, can be split.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from placement.construct import count_copies, place_flexible, place_reserved, place_wrapped
from placement.draft import Draft, fill_spare, new_draft, reset
from placement.flow import Flow, new_flow, solve
from placement.improve import Search, improve, new_search
from placement.survive import lacks_copies, place_evenly
from placement.types import EMPTY, FloatArray, IntArray

CLOSE = 0.0007
"""Distance from the bound that counts as met where replicas can join all devices."""

CLOSE_UNJOINED = 0.003
"""The same where there are too few replicas for that: experts must fit like bricks."""

ALIKE = 1.25
"""Devices whose capacities per slot differ by less than this factor count as alike."""

LOAN = 0.1
"""How much a replica in a spare slot is expected to take off its expert's first copy."""

STEP_DEVICES = 600
"""Improvement steps times devices, so that time per layer stays in proportion."""

LEAST_STEPS = 1
MOST_STEPS = 24

UNJOINED_STEPS = 4
"""Times more steps where few replicas join devices: many small exchanges, each tried quickly."""

SOFT_MISS = 2.0
"""Weight of missing the goal against balance under shaken load, before improvement."""

HARD_MISS = 1000.0
"""The same afterwards: the given load comes first."""


class Plan(NamedTuple):
    """Scratch for one layer, reused over layers."""

    flow: Flow
    draft: Draft
    search: Search
    copies: NDArray[np.int32]
    """[E]"""
    trial: IntArray
    """[D, S] the placement being tried."""
    best: IntArray
    """[D, S] the best so far."""
    shaken: FloatArray
    """[E] scratch: shaken load."""
    free: NDArray[np.bool_]
    """[D, 0] tells `improve` that copies cost nothing."""


@njit(cache=True)
def plan_layers(
    load: FloatArray,
    order: NDArray[np.int64],
    speed: FloatArray,
    offset: FloatArray,
    slots: NDArray[np.int64],
    bound: FloatArray,
    shakes: FloatArray,
    domain: NDArray[np.int64],
    least_copies: int,
    experts: IntArray,
) -> None:
    """Fills `experts` [L, D, S].

    load: [L, E], order: [L, E] experts by falling load; speed, offset: [D]; slots: [L, D];
    bound: [L] least time of the slowest device; shakes: [K, E] factors of about 1;
    domain: [D].
    """
    L, D, S = experts.shape
    E = load.shape[1]
    p = Plan(
        new_flow(E, D, S),
        new_draft(D),
        new_search(D, S),
        np.empty(E, np.int32),
        np.empty((D, S), np.int32),
        np.empty((D, S), np.int32),
        np.empty(E),
        np.empty((D, 0), np.bool_),
    )
    p.draft.domain[:] = domain
    for layer in range(L):
        plan_layer(
            p, load[layer], order[layer], speed, offset, slots[layer], bound[layer], shakes,
            least_copies,
        )  # fmt: skip
        experts[layer] = p.best


@njit(cache=True)
def plan_layer(
    p: Plan,
    load: FloatArray,
    order: NDArray[np.int64],
    speed: FloatArray,
    offset: FloatArray,
    slots: NDArray[np.int64],
    bound: float,
    shakes: FloatArray,
    least_copies: int,
) -> None:
    """Leaves the best placement of one layer in p.best."""
    E = load.shape[0]
    D = speed.shape[0]
    spare = slots.sum() - least_copies * E
    joined = slots.sum() - E >= D - 1
    close = CLOSE if joined else CLOSE_UNJOINED
    goal = bound * (1 + close)
    count_copies(load, D, spare, least_copies, p.copies)
    unlike = unlike_devices(speed, slots)
    steps = max(LEAST_STEPS, min(MOST_STEPS, STEP_DEVICES // D))
    if not joined:
        steps *= UNJOINED_STEPS
    best = -np.inf
    for way in range(2):
        if way == 1 and not unlike:
            break
        reset(p.draft, slots, speed, bound)
        p.trial[:] = EMPTY
        if way == 0:
            place_flexible(p.draft, p.trial, load, order, p.copies)
        else:
            place_reserved(p.draft, p.trial, load, order, p.copies, LOAN)
        finish(p, load)
        if least_copies > 1 and lacks_copies(p.trial, E, least_copies):
            place_evenly(p.trial, order, speed, slots, least_copies)
            finish(p, load)
        if way == 0 and unlike:
            unlike = solve(p.flow, p.trial, load, speed, offset) > goal
        score = 0.0
        if unlike:
            score = judge(p, p.trial, load, speed, offset, bound, SOFT_MISS, close, shakes)
        if score > best:
            best = score
            p.best[:] = p.trial
    improve(
        p.flow, p.search, p.best, load, speed, offset, slots, p.free, goal, 1 << 40,
        1e-6 * bound, least_copies, steps,
    )  # fmt: skip
    if not joined or least_copies > 1:
        return
    if solve(p.flow, p.best, load, speed, offset) <= goal * (1 + close / 10):
        return
    best = judge(p, p.best, load, speed, offset, bound, HARD_MISS, close, shakes)
    reset(p.draft, slots, speed, bound)
    p.trial[:] = EMPTY
    place_wrapped(p.draft, p.trial, load, order, by_density(speed, slots))
    finish(p, load)
    improve(
        p.flow, p.search, p.trial, load, speed, offset, slots, p.free, goal, 1 << 40,
        1e-6 * bound, least_copies, steps,
    )  # fmt: skip
    if judge(p, p.trial, load, speed, offset, bound, HARD_MISS, close, shakes) > best:
        p.best[:] = p.trial


@njit(cache=True)
def finish(p: Plan, load: FloatArray) -> None:
    """Fills the slots that a construction left empty."""
    D, S = p.trial.shape
    placed = np.zeros(load.shape[0], np.int32)
    for d in range(D):
        for s in range(S):
            if p.trial[d, s] != EMPTY:
                placed[p.trial[d, s]] += 1
    fill_spare(p.draft, p.trial, load, placed, D * S)


@njit(cache=True)
def judge(
    p: Plan,
    experts: IntArray,
    load: FloatArray,
    speed: FloatArray,
    offset: FloatArray,
    bound: float,
    weight: float,
    close: float,
    shakes: FloatArray,
) -> float:
    """Mean balance under shaken loads, minus `weight` times the miss of the bound over `close`."""
    time = solve(p.flow, experts, load, speed, offset)
    score = -weight * max(time / bound - 1 - close, 0.0)
    for k in range(shakes.shape[0]):
        for e in range(load.shape[0]):
            p.shaken[e] = load[e] * shakes[k, e]
        time = solve(p.flow, experts, p.shaken, speed, offset)
        score += (p.shaken.sum() + offset.sum()) / (speed.sum() * time * shakes.shape[0])
    return score


@njit(cache=True)
def unlike_devices(speed: FloatArray, slots: NDArray[np.int64]) -> bool:
    """Whether devices differ much in capacity per slot."""
    least = np.inf
    most = 0.0
    for d in range(speed.shape[0]):
        if slots[d] > 0:
            least = min(least, speed[d] / slots[d])
            most = max(most, speed[d] / slots[d])
    return most > ALIKE * least


@njit(cache=True)
def by_density(speed: FloatArray, slots: NDArray[np.int64]) -> NDArray[np.int64]:
    """Devices by falling capacity per slot (insertion sort: few, and compiled in no time)."""
    order = np.arange(speed.shape[0])
    for k in range(1, speed.shape[0]):
        d = order[k]
        j = k - 1
        while j >= 0 and speed[order[j]] * slots[d] < speed[d] * slots[order[j]]:
            order[j + 1] = order[j]
            j -= 1
        order[j + 1] = d
    return order
