"""What is planned, as one value that Python and compiled code share.

`validation.check_problem` makes one from a caller's arrays; the search takes it as it is.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from native.kernel import kernel
from placement.types import FloatArray


class Problem(NamedTuple):
    """L layers of E experts on D devices; arrays validated and contiguous."""

    load: FloatArray
    """[L, E] tokens of each expert."""
    speed: FloatArray
    """[D] tokens per unit of time."""
    offset: FloatArray
    """[D] constant cost of a device in each layer, in tokens."""
    slots: NDArray[np.int64]
    """[L, D] experts a device may hold."""
    failure_domain: NDArray[np.int64]
    """[D] devices that fail together have the same number."""
    bound: FloatArray
    """[L] time that no placement's slowest device can beat, see `search.bounds`; 0 until known."""
    min_copies: int
    """Devices every expert must live on."""

    @property
    def devices(self) -> int:
        return int(self.speed.shape[0])

    def of_layers(self, rows: NDArray[np.int64]) -> Problem:
        """The same for some of the layers only."""
        return self._replace(load=self.load[rows], slots=self.slots[rows], bound=self.bound[rows])


class LayerProblem(NamedTuple):
    """One layer of a `Problem`."""

    load: FloatArray
    """[E]"""
    speed: FloatArray
    """[D]"""
    offset: FloatArray
    """[D]"""
    slots: NDArray[np.int64]
    """[D]"""
    failure_domain: NDArray[np.int64]
    """[D]"""
    bound: float
    min_copies: int


@kernel
def layer_of(p: Problem, layer: int) -> LayerProblem:
    """Views of one layer's part of the arrays."""
    return LayerProblem(
        p.load[layer],
        p.speed,
        p.offset,
        p.slots[layer],
        p.failure_domain,
        p.bound[layer],
        p.min_copies,
    )


@kernel
def with_load(p: LayerProblem, load: FloatArray) -> LayerProblem:
    """The same layer under another load [E]."""
    return LayerProblem(load, p.speed, p.offset, p.slots, p.failure_domain, p.bound, p.min_copies)
