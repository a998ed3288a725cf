"""How good can any placement be? Lower bounds on the slowest device's time, per layer.

Five arguments, each valid for every placement with these slots and free fractional splitting:

- work: no device can be busier than all are on average;
- leftover: what does not fit on the other devices, the coldest experts at best, is served by the
  slowest ones alone;
- slots: a device serves at most the tokens of as many of the hottest experts as it has slots;
- copies: an expert hotter than k devices can serve needs more than k copies, and copies need slots;
- full slots: without redundant slots every slot is taken, so the hottest expert shares its device
  with as many others as fit there, the coldest at best.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from placement.problem import Problem
from placement.types import FloatArray

BISECTIONS = 50
"""Halvings when a bound is found by bisection: to about machine precision."""

ROUNDING = 1e-12
"""Relative slack that keeps rounding from raising a bound."""


def layer_bounds(p: Problem) -> FloatArray:
    """float64 [L]: a time (tokens / speed) that no placement's slowest device can beat."""
    load, speed, slots, constant = p.load, p.speed, p.slots, p.offset
    L, E = load.shape
    falling = -np.sort(-load, axis=1)
    hottest = np.zeros((L, E + 1))
    np.cumsum(falling, axis=1, out=hottest[:, 1:])
    total = hottest[:, -1]
    bounds = (total + constant.sum()) / speed.sum()
    order = np.argsort(speed, kind="stable")
    elsewhere = slots.sum(axis=1, keepdims=True) - np.cumsum(slots[:, order], axis=1)
    coldest = total[:, None] - np.take_along_axis(hottest, np.minimum(elsewhere, E), axis=1)
    coldest += np.cumsum(constant[order])
    np.maximum(bounds, (coldest / np.cumsum(speed[order])).max(axis=1), out=bounds)
    reach = np.take_along_axis(hottest, slots, axis=1)
    enough = total * (1 - ROUNDING)

    def slots_suffice(time: FloatArray, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        served = np.minimum(np.maximum(speed * time[:, None] - constant, 0.0), reach[rows])
        return np.asarray(served.sum(axis=1) >= enough[rows])

    teams = np.cumsum(np.sort(speed)[::-1])
    spare = slots.sum(axis=1) - E

    def copies_suffice(time: FloatArray, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        relative = falling[rows] / np.maximum(time, np.finfo(float).tiny)[:, None]
        layer, rank = np.nonzero(relative > teams[0] * (1 + ROUNDING))
        more = np.searchsorted(teams * (1 + ROUNDING), relative[layer, rank])
        extra = np.bincount(layer, weights=more, minlength=rows.shape[0])
        everywhere = relative[:, 0] <= teams[-1] * (1 + ROUNDING)
        return np.asarray(everywhere & (extra <= spare[rows]))

    full = np.flatnonzero(spare == 0)
    if full.size:
        others = np.take_along_axis(hottest[full], E - np.maximum(slots[full] - 1, 0), axis=1)
        shared = (hottest[full, 1:2] + total[full, None] - others + constant) / speed
        shared[slots[full] == 0] = np.inf
        bounds[full] = np.maximum(bounds[full], shared.min(axis=1))
    for suffices in (slots_suffice, copies_suffice):
        _raise_bounds(bounds, suffices)
    return bounds


def balancedness(time: FloatArray, p: Problem) -> float:
    """Of device times [L, D]: ideal over slowest, summed over layers; 1.0 for no load."""
    slowest = float(time.max(axis=1).sum())
    constant = float(p.offset.sum()) * time.shape[0]
    ideal = (float(p.load.sum()) + constant) / float(p.speed.sum())
    return ideal / slowest if slowest > 0 else 1.0


def _raise_bounds(
    bounds: FloatArray,
    suffices: Callable[[FloatArray, NDArray[np.int64]], NDArray[np.bool_]],
) -> None:
    """Raises each bound to just below the least time that suffices; `suffices` is monotone."""
    rows = np.flatnonzero(~suffices(bounds, np.arange(bounds.shape[0])))
    if rows.size == 0:
        return
    low = bounds[rows]
    high = 2 * low + np.finfo(float).tiny
    while not (done := suffices(high, rows)).all():
        low = np.where(done, low, high)
        high = np.where(done, high, 2 * high)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        done = suffices(middle, rows)
        low = np.where(done, low, middle)
        high = np.where(done, middle, high)
    bounds[rows] = low
