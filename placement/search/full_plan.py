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

from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from placement.search.construct import Task, build_flexible, build_reserved, build_wrapped
from placement.search.flow import layer_times
from placement.search.improve import improve_layers
from placement.search.min_copies import ensure_copies
from placement.types import EMPTY, FloatArray, IntArray

CLOSE = 0.0007
"""Distance from the bound that counts as met where replicas can join all devices."""

CLOSE_UNJOINED = 0.003
"""The same where there are too few replicas for that: experts must fit like bricks."""

ALIKE = 1.25
"""Devices whose capacities per slot differ by less than this factor count as alike."""

STEP_DEVICES = 250
"""Improvement steps times devices, so that time per layer stays in proportion."""

LEAST_STEPS = 1
MOST_STEPS = 16

UNJOINED_STEPS = 4
"""Times more steps where few replicas join devices: many small exchanges, each tried quickly."""

MISS_WEIGHT = 2.0
"""Weight of missing the goal, which improvement may mend, against balance under shaken load."""

UNLIMITED = 1 << 40
"""A move budget that never binds."""

LEAST_GAIN = 1e-6
"""Part of a layer's time goal, in tokens, below which nothing counts as stuck."""


class Way(Enum):
    """Ways of building a layer, see `construct`."""

    FLEXIBLE = "flexible"
    RESERVED = "reserved"
    WRAPPED = "wrapped"


@dataclass(frozen=True, slots=True)
class Problem:
    """What to plan; arrays validated and contiguous."""

    load: FloatArray
    """[L, E] tokens, not all zero in any layer."""
    speed: FloatArray
    """[D]"""
    offset: FloatArray
    """[D] constant cost, in tokens."""
    slots: NDArray[np.int64]
    """[L, D]"""
    bound: FloatArray
    """[L] least time of the slowest device."""
    domain: NDArray[np.int64]
    """[D]"""
    shakes: FloatArray
    """[K, E] factors of about 1."""
    least_copies: int


def plan_layers(p: Problem) -> IntArray:
    """int32 [L, D, S] placement of every layer."""
    L, E = p.load.shape
    D = p.speed.shape[0]
    joined = p.slots.sum(axis=1) - E >= D - 1
    close = np.where(joined, CLOSE, CLOSE_UNJOINED)
    goal = p.bound * (1 + close)
    order = np.argsort(-p.load, axis=1, kind="stable")
    experts = _build(p, order, Way.FLEXIBLE, np.arange(L))
    times = layer_times(experts, p.load, p.speed, p.offset)
    rivals = np.flatnonzero((times > goal) & _unlike(p))
    if rivals.size:
        _reserve_missed(p, experts, times, order, rivals, goal)
    missed = times > goal
    _improve(p, experts, missed, joined, goal)
    if p.least_copies == 1:
        _wrap_missed(p, experts, order, np.flatnonzero(missed & joined), goal)
    return experts


def _reserve_missed(
    p: Problem,
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
    rival_times = layer_times(rival, p.load[rows], p.speed, p.offset)
    better = _judge(p, rival, rows, goal, rival_times) > _judge(
        p, experts[rows], rows, goal, times[rows]
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
    times = layer_times(experts[rows], p.load[rows], p.speed, p.offset)
    late = times > goal[rows] * (1 + CLOSE / 10)
    rows, times = rows[late], times[late]
    if rows.size == 0:
        return
    wrapped = _build(p, order, Way.WRAPPED, rows)[rows]
    faster = layer_times(wrapped, p.load[rows], p.speed, p.offset) < times
    experts[rows[faster]] = wrapped[faster]


def _build(p: Problem, order: NDArray[np.int64], way: Way, rows: NDArray[np.int64]) -> IntArray:
    """int32 [L, D, S] with the layers `rows` built, the others empty."""
    L, D = p.slots.shape
    experts = np.full((L, D, int(p.slots.max())), EMPTY, np.int32)
    task = Task(rows, p.load, order, p.speed, p.offset, p.slots, p.bound, p.domain, p.least_copies)
    if way is Way.FLEXIBLE:
        build_flexible(task, experts)
    elif way is Way.RESERVED:
        build_reserved(task, experts)
    else:
        density = p.speed / np.maximum(p.slots, 1)
        build_wrapped(task, np.argsort(-density, axis=1, kind="stable"), experts)
    if p.least_copies > 1:
        ensure_copies(experts, p.load, order, p.speed, p.slots, rows, p.least_copies)
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
    improve_layers(
        experts, p.load, p.speed, p.offset, p.slots, np.empty((L, D, 0), np.int32),
        goal[None, :], np.where(chosen, UNLIMITED, 0), LEAST_GAIN * p.bound, p.least_copies,
        np.where(joined, steps, steps * UNJOINED_STEPS),
    )  # fmt: skip


def _judge(
    p: Problem,
    experts: IntArray,
    rows: NDArray[np.int64],
    goal: FloatArray,
    times: FloatArray,
) -> FloatArray:
    """Mean balance under shaken loads, minus a penalty for missing the goal, per layer of `rows`.

    times: of the slowest device under the given load.
    """
    score = -MISS_WEIGHT * np.maximum(times / goal[rows] - 1, 0.0)
    for shake in p.shakes:
        shaken = p.load[rows] * shake
        ideal = (shaken.sum(axis=1) + p.offset.sum()) / p.speed.sum()
        score += ideal / layer_times(experts, shaken, p.speed, p.offset) / p.shakes.shape[0]
    return score


def _unlike(p: Problem) -> NDArray[np.bool_]:
    """Whether devices differ much in capacity per slot, per layer."""
    density = p.speed / np.maximum(p.slots, 1)
    most = np.where(p.slots > 0, density, 0.0).max(axis=1)
    least = np.where(p.slots > 0, density, np.inf).min(axis=1)
    return np.asarray(most > ALIKE * least)
