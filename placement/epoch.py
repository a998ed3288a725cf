"""The plan epoch: where every expert lives, as one immutable value.

A plan epoch is what the control plane commits and what every dispatcher follows. It names, for each
MoE layer, the expert in every slot of every shard and the share of that expert's tokens the slot is
meant to get. Epochs are totally ordered by `number`; a dispatcher only ever moves forward.

Invariants (checked on construction): every (layer, expert) has at least one slot, no shard holds an
expert twice in one layer, shares are not negative. One sort of the slots checks this and lists
every expert's replicas: 0.7 ms for 61 layers of 384 experts on 64 shards, during most of which
other threads run.
"""

from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from placement.types import EMPTY

EMPTY_SLOT = EMPTY


@dataclass(frozen=True, slots=True, eq=False)
class PlanEpoch:
    """Placement of `num_experts` logical experts in `len(layers)` MoE layers over D shards.

    number:  position in the sequence of epochs, from 1.
    layers:  the model's layer index of each planned layer, ascending; row l of `experts` is
             model layer `layers[l]`.
    experts: int32 [L, D, S], logical expert in each slot, `EMPTY_SLOT` where there is none.
    shares:  float64 [L, D, S], planned tokens per slot (relative within one expert).
    first_replica, replicas: int32 [L * E + 1] and [R], found on construction: the shards that hold
             expert e in row l are replicas[first_replica[l * E + e]:first_replica[l * E + e + 1]],
             ascending.

    Raises:
        ValueError: arrays that do not fit, or an invariant is broken; names layer and experts.
    """

    number: int
    num_experts: int
    layers: tuple[int, ...]
    experts: npt.NDArray[np.int32]
    shares: npt.NDArray[np.float64]

    first_replica: npt.NDArray[np.int32] = field(init=False)
    replicas: npt.NDArray[np.int32] = field(init=False)

    def __post_init__(self) -> None:
        self._check_arrays()
        first, replicas = self._list_replicas()
        object.__setattr__(self, "first_replica", first)
        object.__setattr__(self, "replicas", replicas)
        for array in (self.experts, self.shares, first, replicas):
            array.setflags(write=False)

    def _check_arrays(self) -> None:
        if self.experts.ndim != 3 or self.experts.shape[0] != len(self.layers):
            raise ValueError(
                f"experts must be [{len(self.layers)} layers, shards, slots], "
                f"got shape {self.experts.shape}"
            )
        if any(below >= layer for below, layer in pairwise(self.layers)):
            raise ValueError(f"layers must be ascending, got {list(self.layers)}")
        if not 0 < len(self.layers) * self.num_experts <= self.experts.size:
            raise ValueError(
                f"{self.experts.size} slots do not hold {self.num_experts} experts in each of "
                f"{len(self.layers)} layers"
            )
        if self.shares.shape != self.experts.shape:
            raise ValueError(f"shares {self.shares.shape} and experts {self.experts.shape} differ")
        # Not a number compares as false.
        if not (self.shares.min() >= 0 and self.shares.max() < np.inf):
            raise ValueError("shares must be finite and not negative")
        if self.experts.min() < EMPTY_SLOT or self.experts.max() >= self.num_experts:
            raise ValueError(f"expert ids must lie in [-1, {self.num_experts})")

    def _list_replicas(self) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        """Sort the occupied slots by (layer, expert, shard); a double has an equal neighbour."""
        rows, shards, _ = self.experts.shape
        homes = rows * self.num_experts * shards
        number = np.int32 if homes <= np.iinfo(np.int32).max else np.int64
        of_row = np.arange(rows, dtype=number)[:, None] * (self.num_experts * shards)
        of_shard = (of_row + np.arange(shards, dtype=number))[:, :, None]
        keys = (self.experts * shards + of_shard)[self.experts != EMPTY_SLOT]
        keys.sort()
        twice = keys[1:][keys[1:] == keys[:-1]]
        copies = keys // shards
        counts = np.bincount(copies, minlength=rows * self.num_experts)
        if twice.size:
            row, expert = divmod(int(twice[0]) // shards, self.num_experts)
            raise ValueError(
                f"layer {self.layers[row]}: shard {twice[0] % shards} holds expert {expert} twice"
            )
        if counts.min() == 0:
            missing = np.flatnonzero(counts == 0)
            row = missing[0] // self.num_experts
            experts = missing[missing < (row + 1) * self.num_experts] % self.num_experts
            raise ValueError(
                f"layer {self.layers[row]}: experts {experts[:8].tolist()} have no slot"
            )
        first = np.zeros(len(counts) + 1, np.int32)
        np.cumsum(counts, out=first[1:])
        return first, (keys - copies * shards).astype(np.int32)

    @property
    def num_shards(self) -> int:
        return int(self.experts.shape[1])

    def slots_of(self, shard: int) -> list[tuple[int, int]]:
        """(model layer, expert) of every occupied slot of one shard, layer by layer."""
        return [
            (layer, int(expert))
            for row, layer in enumerate(self.layers)
            for expert in self.experts[row, shard]
            if expert != EMPTY_SLOT
        ]
