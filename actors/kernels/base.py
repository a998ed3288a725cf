"""The seam between a shard and the hardware it runs on.

One `ExpertKernel` holds the weights of one shard's slots, layer by layer, and computes the weighted
expert outputs of a batch. Implementations: vLLM's CPU kernels and a portable torch kernel.
"""

from typing import Protocol

import torch


class ExpertsMissing(LookupError):
    """A call names experts this kernel does not hold; the message says which."""


class ExpertKernel(Protocol):
    """Weights of a shard's slots on one device, and the grouped expert computation over them.

    `compute` is for one thread.
    """

    def load(self, layer: int, experts: list[int]) -> None:
        """Make `experts` (logical ids) of model layer `layer` resident, replacing what the layer
        held. Reads only tensors of experts not yet held. May run beside `compute` in another
        thread: a call sees either all of the old or all of the new experts of its layer.
        """
        ...

    def compute(
        self,
        layer: int,
        rows: torch.Tensor,
        row_index: torch.Tensor,
        experts: torch.Tensor,
        weights: torch.Tensor,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Weighted partial sums of one batch.

        rows: [R, H] bf16; row_index, experts: int32 [A], assignment a sends row `row_index[a]`
        through logical expert `experts[a]` of `layer`, scaled by weights [A] fp32; R, A >= 1.
        Returns contiguous [R, H] fp32 on the CPU: sum over a row's assignments, in ascending
        assignment order; rows without an assignment are zero. With `out` they are written there.

        Raises:
            ExpertsMissing: the layer holds not all of `experts`.
        """
        ...

    def resident_bytes(self) -> int:
        """Bytes of weights and scales held now."""
        ...

    def describe(self) -> str:
        """One line for people: which kernel, which format, and any fallback that was needed."""
        ...
