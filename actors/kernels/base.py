"""The seam between a shard and the hardware it runs on.

One `ExpertKernel` holds the weights of one shard's slots, layer by layer, and computes the weighted
expert outputs of a batch. Implementations: vLLM's CPU kernels and a portable torch kernel.
"""

from typing import Protocol

import torch


class ExpertKernel(Protocol):
    """Weights of a shard's slots on one device, and the grouped expert computation over them."""

    def load(self, layer: int, experts: list[int]) -> None:
        """Make `experts` (logical ids) of model layer `layer` resident, replacing what the layer
        held. Slot s of the layer is `experts[s]`. Reads only tensors of experts not yet held.
        """
        ...

    def compute(
        self,
        layer: int,
        rows: torch.Tensor,
        row_index: torch.Tensor,
        slots: torch.Tensor,
        weights: torch.Tensor,
    ) -> torch.Tensor:
        """Weighted partial sums of one batch.

        rows: [R, H] bf16; row_index, slots: int32 [A], assignment a sends row `row_index[a]` through
        slot `slots[a]` of `layer`, scaled by weights [A] fp32. Every row has at least one assignment.
        Returns [R, H] fp32: sum over a row's assignments, in ascending assignment order.
        """
        ...

    def resident_bytes(self) -> int:
        """Bytes of weights and scales held now."""
        ...
