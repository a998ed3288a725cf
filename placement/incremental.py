"""Adapts the placement that is loaded now to new load, new speeds or new devices, by few copies.

First what must be: experts whose last device left get a new home (`repair`). Then the changes that
free most per copy (`improve`), within the budget, until the goal is met.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from placement.flow import new_flow
from placement.improve import improve, new_search
from placement.repair import carry_layer
from placement.types import FloatArray, IntArray

STAGES = (0.5, 0.2, 0.08, 0.03, 0.01)
"""Distances from the bound, met one after the other: so a small budget goes to the worst devices
first. Nearer than the last no further copy is worth its traffic."""

LEAST_GAIN = 0.0007
"""Part of all tokens that a copy must bring in time, to be worth its traffic."""

STEPS = 40
"""Changes per layer at most."""


@njit(cache=True)
def adapt_layers(
    load: FloatArray,
    speed: FloatArray,
    offset: FloatArray,
    slots: NDArray[np.int64],
    bound: FloatArray,
    current: IntArray,
    budget: int,
    least_copies: int,
    experts: IntArray,
) -> NDArray[np.int64]:
    """Fills `experts` [L, D, S] from `current` [L, D, S']; returns [L] copies that had to be made.

    load: [L, E]; speed, offset: [D]; slots: [L, D]; bound: [L]; budget: copies per layer beyond
    those that experts without enough homes need.
    """
    L, D, S = experts.shape
    E = load.shape[1]
    f = new_flow(E, D, S)
    q = new_search(D, S)
    resident = np.empty((D, E), np.bool_)
    forced = np.zeros(L, np.int64)
    for layer in range(L):
        carry_layer(load[layer], speed, slots[layer], current[layer], least_copies, experts[layer])
        resident[:] = False
        for d in range(D):
            for s in range(current.shape[2]):
                if current[layer, d, s] >= 0:
                    resident[d, current[layer, d, s]] = True
            for s in range(S):
                e = experts[layer, d, s]
                if e >= 0 and not resident[d, e]:
                    forced[layer] += 1
                    resident[d, e] = True
        left = budget
        for stage in STAGES:
            left -= improve(
                f, q, experts[layer], load[layer], speed, offset, slots[layer], resident,
                bound[layer] * (1 + stage), left, LEAST_GAIN * load[layer].sum(), least_copies, STEPS,
            )  # fmt: skip
    return forced
