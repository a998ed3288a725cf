"""Puts a new placement into the slots of the old one: an expert that stays on its device stays put.

Loading is decided by device, not by slot; but a slot that keeps its expert needs no update at all.
"""

from __future__ import annotations

from native.kernel import entry
from placement.types import EMPTY, IntArray


@entry
def align_layers(current: IntArray, experts: IntArray) -> None:
    """Reorders the slots of `experts` [L, D, S] to match `current` [L, D, S'] where ids agree."""
    L, D, S = experts.shape
    for layer in range(L):
        for d in range(D):
            row = experts[layer, d]
            for s in range(min(S, current.shape[2])):
                wanted = current[layer, d, s]
                # Only slots that are filled may be traded: a shrunk device's last ones stay empty.
                if wanted == EMPTY or row[s] == EMPTY:
                    continue
                for other in range(S):
                    if row[other] == wanted:
                        row[other], row[s] = row[s], row[other]
                        break
