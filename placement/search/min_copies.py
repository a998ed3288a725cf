# ruff: noqa: SIM110 - compiled loops take arrays one by one
"""A layer in which every expert has several copies, on different devices, whatever the slots.

Rule: experts by falling load, each on the devices with most free slots. This is the Gale-Ryser
construction: it succeeds whenever sum(min(slots, E)) >= copies * E, where greedy balancing may end
with only slots on devices that hold the expert already.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from native.kernel import entry, kernel
from placement.problem import LayerProblem, Problem, layer_of
from placement.search.draft import fill_spare
from placement.types import EMPTY, IntArray


@entry
def ensure_copies(
    experts: IntArray, p: Problem, order: NDArray[np.int64], rows: NDArray[np.int64]
) -> None:
    """Builds those layers of `experts` [L, D, S], out of `rows`, anew that lack copies.

    order: [L, E] experts by falling load.
    """
    E = p.load.shape[1]
    copies = np.empty(E, np.int32)
    for layer in rows:
        if lacks_copies(experts[layer], E, p.min_copies):
            place_evenly(experts[layer], order[layer], layer_of(p, layer))
            fill_spare(p.slots[layer], experts[layer], p.load[layer], copies)


@kernel
def lacks_copies(experts: IntArray, E: int, min_copies: int) -> bool:
    """Whether some expert has fewer than `min_copies` copies in experts [D, S]."""
    copies = np.zeros(E, np.int64)
    for d in range(experts.shape[0]):
        for s in range(experts.shape[1]):
            if experts[d, s] != EMPTY:
                copies[experts[d, s]] += 1
    for e in range(E):
        if copies[e] < min_copies:
            return True
    return False


@kernel
def place_evenly(experts: IntArray, order: NDArray[np.int64], p: LayerProblem) -> None:
    """Fills `experts` [D, S] (emptied first) with `min_copies` of each expert in `order` [E]."""
    speed, slots = p.speed, p.slots
    D = speed.shape[0]
    experts[:] = EMPTY
    free = slots.copy()
    taken = np.empty(D, np.bool_)
    for e in order:
        taken[:] = False
        for _ in range(p.min_copies):
            best = -1
            for d in range(D):
                if not taken[d] and (best < 0 or (free[d], speed[d]) > (free[best], speed[best])):
                    best = d
            taken[best] = True
            experts[best, slots[best] - free[best]] = e
            free[best] -= 1
