"""Adapts the placement that is loaded now to new load, new speeds or new devices, by few copies.

First what must be: experts left with too few devices get new homes (`repair`). Then the changes
that free most time per copy (`improve`), within the budget, until the goal is met.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from placement.problem import Problem
from placement.search.carry_over import carry_layers, house_layers
from placement.search.improve import Limits, improve_layers
from placement.types import EMPTY, IntArray

STAGES = (0.5, 0.2, 0.08, 0.03, 0.01)
"""Distances from the bound, met one after the other: so a small budget goes to the worst devices
first. Nearer than the last no further copy is worth its traffic."""

LEAST_GAIN = 0.0007
"""Part of all tokens that a copy must bring in time, to be worth its traffic."""

STEPS = 40
"""Changes per layer and stage at most."""


def adapt_layers(p: Problem, current: IntArray, budget: int) -> tuple[IntArray, NDArray[np.int64]]:
    """New placement int32 [L, D, S], and the copies [L] that had to be made whatever the budget.

    current: [L, D, S']; budget: copies per layer beyond those.
    """
    L, D = p.slots.shape
    experts = np.full((L, D, int(p.slots.max())), EMPTY, np.int32)
    missing = carry_layers(p, current, experts)
    forced = np.zeros(L, np.int64)
    if (rows := np.flatnonzero(missing)).size:
        kept = experts.copy()
        house_layers(p, rows, experts)
        new = (experts != kept) & ~(experts[:, :, :, None] == current[:, :, None, :]).any(axis=3)
        forced = new.sum(axis=(1, 2))
    goals = p.bound * (1 + np.array(STAGES))[:, None]
    limits = Limits(np.full(L, budget), LEAST_GAIN * p.load.sum(axis=1), np.full(L, STEPS))
    improve_layers(experts, p, current, goals, limits)
    return experts, forced
