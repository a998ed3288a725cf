"""How good can any placement be? Lower bounds on the slowest device's time, per layer.

Three arguments, each valid for every placement with these slots and free fractional splitting:
work (all devices busy all the time), slots (a device serves at most the tokens of its slots'
number of hottest experts) and seclusion (experts that cannot fit on the other devices are served
by the remaining ones alone).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from placement.types import FloatArray

BISECTIONS = 60
"""Halvings when a bound is found by bisection: to machine precision."""


def layer_bounds(load: FloatArray, speed: FloatArray, slots: NDArray[np.int64]) -> FloatArray:
    """float64 [L]: a time (tokens / speed) that no placement's slowest device can beat.

    load: [L, E] tokens; speed: [D]; slots: [L, D], validated.
    """
    bounds = load.sum(axis=1) / speed.sum()
    for layer in range(load.shape[0]):
        rising = np.concatenate(([0.0], np.cumsum(np.sort(load[layer]))))
        bounds[layer] = max(
            bounds[layer],
            _seclusion_bound(rising, speed, slots[layer]),
            _slot_bound(rising, speed, slots[layer], bounds[layer]),
        )
    return bounds


def balance_of(time: FloatArray, load: FloatArray, speed: FloatArray) -> float:
    """Balance of device times [L, D]: ideal over slowest, summed over layers; 1.0 for no load."""
    slowest = float(time.max(axis=1).sum())
    ideal = float(load.sum()) / float(speed.sum())
    return ideal / slowest if slowest > 0 else 1.0


def _seclusion_bound(rising: FloatArray, speed: FloatArray, slots: NDArray[np.int64]) -> float:
    """The slowest k devices must serve at least the coldest experts that do not fit elsewhere."""
    order = np.argsort(speed, kind="stable")
    elsewhere = slots.sum() - np.cumsum(slots[order])
    forced = np.maximum(rising.shape[0] - 1 - elsewhere, 0)
    return float((rising[forced] / np.cumsum(speed[order])).max())


def _slot_bound(
    rising: FloatArray, speed: FloatArray, slots: NDArray[np.int64], at_least: float
) -> float:
    """Least T with sum_d min(speed_d * T, tokens of the slots_d hottest experts) >= all tokens."""
    total = rising[-1]
    reach = total - rising[rising.shape[0] - 1 - slots]

    def served(time: float) -> float:
        return float(np.minimum(speed * time, reach).sum())

    enough = total * (1 - 1e-12)
    if served(at_least) >= enough:
        return at_least
    low, high = at_least, float((reach / speed).max())
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        if served(middle) < enough:
            low = middle
        else:
            high = middle
    return low
