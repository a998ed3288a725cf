"""Plans layers from nothing: builds them in several ways and keeps what stands up best.

A plan must do two things: balance the load it was given, and leave enough room to move when the
next batches differ. So where ways of building compete, a plan is judged by how well the given load,
shaken by a few fixed random factors, can be split; meeting the goal on the given load comes first.

1. Build flexibly. Where that misses the goal and devices differ in capacity per slot, build with
   reserved slots too and keep the better one.
2. Improve what misses the goal by local search.
3. Where that is still missed, and replicas are enough to join all devices, build by wrapping, which
   is exact on the given load though it leaves less room to move.
"""

from __future__ import annotations

from enum import Enum

import numpy as np
from numpy.typing import NDArray

from placement.problem import Problem
from placement.search.construct import build_flexible, build_reserved, build_wrapped
from placement.search.flow import layer_times
from placement.search.improve import Limits, improve_layers
from placement.search.min_copies import ensure_copies
from placement.types import EMPTY, FloatArray, IntArray

CLOSE = 0.0007
"""Distance from the bound that counts as met where replicas can join all devices."""

CLOSE_UNJOINED = 0.003
"""The same where there are too few replicas for that: then only whole experts can be moved."""

ALIKE = 1.25
"""Devices whose capacities per slot differ by less than this factor count as alike."""

STEP_DEVICES = 250
"""Improvement steps times devices, so that time per layer stays in proportion."""

LEAST_STEPS = 1
MOST_STEPS = 16

UNJOINED_STEPS = 4
"""Times more steps where few replicas join devices: many small exchanges, each tried quickly."""

MISS_WEIGHT = 2.0
"""Weight of missing the goal, which improvement may mend, against what shaken loads give."""

UNLIMITED = 1 << 40
"""A move budget that never binds."""

LEAST_GAIN = 1e-6
"""Part of a layer's time goal, in tokens, below which nothing counts as stuck."""


class Way(Enum):
    """Ways of building a layer, see `construct`."""

    FLEXIBLE = "flexible"
    RESERVED = "reserved"
    WRAPPED = "wrapped"


def plan_layers(p: Problem, shakes: FloatArray) -> IntArray:
    """int32 [L, D, S] placement of every layer; no layer's load may be zero throughout.

    shakes: [K, E] factors of about 1, by which rival placements are judged.
    """
    L, E = p.load.shape
    D = p.devices
    joined = p.slots.sum(axis=1) - E >= D - 1
    close = np.where(joined, CLOSE, CLOSE_UNJOINED)
    goal = p.bound * (1 + close)
    order = np.argsort(-p.load, axis=1, kind="stable")
    experts = _build(p, order, Way.FLEXIBLE, np.arange(L))
    times = layer_times(experts, p)
    rivals = np.flatnonzero((times > goal) & _unlike(p))
    if rivals.size:
        _reserve_missed(p, shakes, experts, times, order, rivals, goal)
    missed = times > goal
    _improve(p, experts, missed, joined, goal)
    if p.min_copies == 1:
        _wrap_missed(p, experts, order, np.flatnonzero(missed & joined), goal)
    return experts


def _reserve_missed(
    p: Problem,
    shakes: FloatArray,
    experts: IntArray,
    times: FloatArray,
    order: NDArray[np.int64],
    rows: NDArray[np.int64],
    goal: FloatArray,
) -> None:
    """Replaces layers, out of `rows`, by ones built with reserved slots where these score higher.

    Keeps `times` [L] of the slowest device up to date.
    """
    rival = _build(p, order, Way.RESERVED, rows)[rows]
    rival_times = layer_times(rival, p.of_layers(rows))
    part = p.of_layers(rows)
    better = _judge(part, shakes, rival, goal[rows], rival_times) > _judge(
        part, shakes, experts[rows], goal[rows], times[rows]
    )
    experts[rows[better]] = rival[better]
    times[rows[better]] = rival_times[better]


def _wrap_missed(
    p: Problem,
    experts: IntArray,
    order: NDArray[np.int64],
    rows: NDArray[np.int64],
    goal: FloatArray,
) -> None:
    """Replaces layers, out of `rows`, that still miss the goal by wrapped ones where faster."""
    times = layer_times(experts[rows], p.of_layers(rows))
    late = times > goal[rows] * (1 + CLOSE / 10)
    rows, times = rows[late], times[late]
    if rows.size == 0:
        return
    wrapped = _build(p, order, Way.WRAPPED, rows)[rows]
    faster = layer_times(wrapped, p.of_layers(rows)) < times
    experts[rows[faster]] = wrapped[faster]


def _build(p: Problem, order: NDArray[np.int64], way: Way, rows: NDArray[np.int64]) -> IntArray:
    """int32 [L, D, S] with the layers `rows` built, the others empty."""
    L, D = p.slots.shape
    experts = np.full((L, D, int(p.slots.max())), EMPTY, np.int32)
    time = p.bound
    if way is Way.FLEXIBLE:
        build_flexible(p, rows, order, time, experts)
    elif way is Way.RESERVED:
        build_reserved(p, rows, order, time, experts)
    else:
        density = p.speed / np.maximum(p.slots, 1)
        ranking = np.argsort(-density, axis=1, kind="stable")
        build_wrapped(p, rows, order, time, ranking, experts)
    if p.min_copies > 1:
        ensure_copies(experts, p, order, rows)
    return experts


def _improve(
    p: Problem,
    experts: IntArray,
    chosen: NDArray[np.bool_],
    joined: NDArray[np.bool_],
    goal: FloatArray,
) -> None:
    if not chosen.any():
        return
    L, D = p.slots.shape
    steps = max(LEAST_STEPS, min(MOST_STEPS, STEP_DEVICES // D))
    limits = Limits(
        copies=np.where(chosen, UNLIMITED, 0),
        least_gain=LEAST_GAIN * p.bound,
        steps=np.where(joined, steps, steps * UNJOINED_STEPS),
    )
    improve_layers(experts, p, np.empty((L, D, 0), np.int32), goal[None, :], limits)


def _judge(
    p: Problem, shakes: FloatArray, experts: IntArray, goal: FloatArray, times: FloatArray
) -> FloatArray:
    """[L] mean balancedness under shaken loads, minus a penalty for missing the goal.

    times: of the slowest device under the given load.
    """
    score = -MISS_WEIGHT * np.maximum(times / goal - 1, 0.0)
    for shake in shakes:
        shaken = p._replace(load=p.load * shake)
        ideal = (shaken.load.sum(axis=1) + p.offset.sum()) / p.speed.sum()
        score += ideal / layer_times(experts, shaken) / shakes.shape[0]
    return score


def _unlike(p: Problem) -> NDArray[np.bool_]:
    """Whether devices differ much in capacity per slot, per layer."""
    density = p.speed / np.maximum(p.slots, 1)
    most = np.where(p.slots > 0, density, 0.0).max(axis=1)
    least = np.where(p.slots > 0, density, np.inf).min(axis=1)
    return np.asarray(most > ALIKE * least)
