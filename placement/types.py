"""What a planner answers with: one placement for all layers, and what it is expected to do.

Invariants of every `Placement` this package returns: each expert sits on at least one device, no
device holds an expert twice, device d uses at most `slots[l, d]` slots of layer l.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

EMPTY = -1
"""Marks a slot that holds no expert."""

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Placement:
    """Which expert sits in which slot, and what to expect of it."""

    experts: IntArray
    """[L, D, S] logical expert id per slot, `EMPTY` (-1) where nothing is held."""

    shares: FloatArray
    """[L, D, S] tokens each slot is planned to serve; sums to the load of each expert."""

    moves: IntArray
    """[M, 4] copies to load, one per row: layer, device, slot, expert. Without a current
    placement every filled slot is one."""

    balancedness: float
    """Predicted: time of perfectly shared work over time of the slowest device, summed
    over layers. 1.0 is perfect."""

    bound: float
    """Ceiling: no placement with these speeds and slots has a balancedness above this."""

    reason: str
    """Why this placement, in one line for people."""
