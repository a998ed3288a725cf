"""The seam between a shard and the hardware it runs on.

One `ExpertKernel` holds the weights of one shard's slots, layer by layer, and computes the weighted
expert outputs of a batch. What differs between devices and formats is its `ExpertOperator`: vLLM's
CPU and CUDA kernels, torch's grouped GEMM, and plain torch for everything else.
"""

from typing import Protocol, runtime_checkable

import torch

from actors.experts.checkpoint import ExpertTensors
from actors.experts.formats.base import NumberFormat


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

        rows: [R, H] bf16, on the CPU or on the kernel's device; row_index, experts: int32 [A],
        assignment a sends row `row_index[a]` through logical expert `experts[a]` of `layer`, scaled
        by weights [A] fp32, all three on the CPU; R, A >= 1. Returns contiguous [R, H] fp32 where
        the rows are: sum over a row's assignments, in ascending assignment order; rows without an
        assignment are zero. With `out` they are written there.

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


class StartedCall(Protocol):
    """A call that its device has."""

    def finish(self) -> None:
        """Return when its sums are there. Raises what `ExpertKernel.compute` raises."""
        ...


@runtime_checkable
class OverlappingKernel(ExpertKernel, Protocol):
    """A kernel whose calls can be started before the one before is finished."""

    @property
    def overlaps(self) -> bool:
        """Whether that gains anything: copies to the device run beside its computing."""
        ...

    def start(
        self,
        layer: int,
        rows: torch.Tensor,
        row_index: torch.Tensor,
        experts: torch.Tensor,
        weights: torch.Tensor,
        out: torch.Tensor,
    ) -> StartedCall:
        """As `compute`; the sums are in `out` once the call is finished, the other tensors may be
        changed before. For two calls at a time, the first one of which is finished first."""
        ...


class ExpertOperator(Protocol):
    """What differs between kernels: the form weights are kept in, and the operator over them."""

    @property
    def device(self) -> torch.device:
        """Where weights are kept and computed."""
        ...

    @property
    def weight_format(self) -> NumberFormat:
        """What weights are kept in."""
        ...

    def pack(self, expert: ExpertTensors) -> ExpertTensors:
        """Native tensors of one expert in the operator's form, on `device`; does not alias them."""
        ...

    def run(
        self, held: ExpertTensors, rows: torch.Tensor, slots: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        """[A, H] weighted outputs (bf16 or fp32) of row a through slot slots[a].

        held: stacked over slots; rows [A, H] bf16, slots int32 [A], weights [A] fp32, on `device`.
        """
        ...

    def describe(self) -> str:
        """One phrase: format, implementation and what it does about the activation."""
        ...


@runtime_checkable
class PacksInPlace(Protocol):
    """An operator that can write what `pack` gives where it is to stay."""

    def pack_into(self, expert: ExpertTensors, slot: ExpertTensors) -> None:
        """Write `pack(expert)` to `slot`: contiguous tensors of the same shapes and types."""
        ...
