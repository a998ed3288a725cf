"""The plan epoch: where every expert lives, as one immutable value.

A plan epoch is what the control plane commits and what every dispatcher follows. It names, for each
MoE layer, the expert in every slot of every shard and the share of that expert's tokens the slot is
meant to get. Epochs are totally ordered by `number`; a dispatcher only ever moves forward.

Invariants (checked on construction): every (layer, expert) has at least one slot, no shard holds an
expert twice in one layer, shares are not negative.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

EMPTY_SLOT = -1


@dataclass(frozen=True, slots=True, eq=False)
class PlanEpoch:
    """Placement of `num_experts` logical experts in `len(layers)` MoE layers over D shards.

    number:  position in the sequence of epochs, from 1.
    layers:  the model's layer index of each planned layer, ascending; row l of `experts` is
             model layer `layers[l]`.
    experts: int32 [L, D, S], logical expert in each slot, `EMPTY_SLOT` where there is none.
    shares:  float64 [L, D, S], planned tokens per slot (relative within one expert).
    """

    number: int
    num_experts: int
    layers: tuple[int, ...]
    experts: npt.NDArray[np.int32]
    shares: npt.NDArray[np.float64]

    def __post_init__(self) -> None:
        if self.experts.ndim != 3 or self.experts.shape[0] != len(self.layers):
            raise ValueError(
                f"experts must be [{len(self.layers)} layers, shards, slots], "
                f"got shape {self.experts.shape}"
            )
        if self.shares.shape != self.experts.shape:
            raise ValueError(f"shares {self.shares.shape} and experts {self.experts.shape} differ")
        if (self.shares < 0).any() or not np.isfinite(self.shares).all():
            raise ValueError("shares must be finite and not negative")
        if (self.experts < EMPTY_SLOT).any() or (self.experts >= self.num_experts).any():
            raise ValueError(f"expert ids must lie in [-1, {self.num_experts})")
        for row, layer in enumerate(self.layers):
            self._check_layer(row, layer)
        self.experts.setflags(write=False)
        self.shares.setflags(write=False)

    def _check_layer(self, row: int, layer: int) -> None:
        held = self.experts[row]
        missing = np.setdiff1d(np.arange(self.num_experts), held)
        if missing.size:
            raise ValueError(f"layer {layer}: experts {missing[:8].tolist()} have no slot")
        for shard, slots in enumerate(held):
            used = slots[slots != EMPTY_SLOT]
            if np.unique(used).size != used.size:
                raise ValueError(f"layer {layer}: shard {shard} holds an expert twice")

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
