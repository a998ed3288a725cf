"""bf16: no scales."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from actors.experts.formats.base import FP8_METHODS, Kind, Quantisation, Stored

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Bf16:
    """See `NumberFormat`."""

    name: ClassVar[str] = "bf16"
    label: ClassVar[str] = "bf16"
    quant_methods: ClassVar[frozenset[str | None]] = FP8_METHODS
    dtypes: ClassVar[tuple[str, ...]] = ("BF16",)
    weight_suffix: ClassVar[str | None] = None
    scale_suffix: ClassVar[str | None] = None

    def why_not(self, quantisation: Quantisation) -> str | None:
        return None

    def stored(
        self, rows: int, columns: int, *, transposed: bool, block_layout: bool
    ) -> Iterator[Stored]:
        yield Stored(Kind.WEIGHT, (columns, rows) if transposed else (rows, columns), self.dtypes)

    def bytes_of(self, rows: int, columns: int) -> int:
        return 2 * rows * columns

    def canonical(self, kind: Kind, tensor: torch.Tensor) -> torch.Tensor:
        return tensor

    def kept_scale(self, tensors: Mapping[Kind, torch.Tensor]) -> torch.Tensor | None:
        return tensors.get(Kind.SCALE)

    def decode(
        self,
        weight: torch.Tensor,
        scale: torch.Tensor | None,
        dtype: torch.dtype,
        halves: int = 1,
    ) -> torch.Tensor:
        return weight.to(dtype)

    def sample(self, rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        import torch

        return torch.randn(rows, columns).bfloat16(), None


BF16 = Bf16()
