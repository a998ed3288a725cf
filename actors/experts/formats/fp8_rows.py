"""FP8 (e4m3) with one scale for each output row, or one for a whole matrix.

That is compressed-tensors' FP8-dynamic (`channel`) and FP8 (`tensor`), and what `quant_method: fp8`
stores without blocks: `weight` [out, in], `weight_scale` [out, 1] or one number. Scales of rows'
values, `input_scale`, are not read: rows stay bf16, closer to the model before it was quantised.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from actors.experts.formats import compressed
from actors.experts.formats.base import Kind, Quantisation, Stored
from actors.experts.formats.fp8_block128 import e4m3_values

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Fp8Rows:
    """See `NumberFormat`. Kept with a scale for each row, in fp32."""

    name: ClassVar[str] = "fp8-rows"
    label: ClassVar[str] = "fp8 with a scale for each output row (compressed-tensors)"
    strategy: ClassVar[str] = "channel"
    quant_methods: ClassVar[frozenset[str | None]] = frozenset({compressed.METHOD})
    dtypes: ClassVar[tuple[str, ...]] = ("F8_E4M3",)
    weight_suffix: ClassVar[str | None] = None
    scale_suffix: ClassVar[str | None] = ".weight_scale"

    def why_not(self, quantisation: Quantisation) -> str | None:
        wanted = {
            "num_bits": (8,),
            "type": ("float",),
            "symmetric": (True,),
            "strategy": (self.strategy,),
        }
        return compressed.other_weights(quantisation, wanted)

    def stored(
        self, rows: int, columns: int, *, transposed: bool, block_layout: bool
    ) -> Iterator[Stored]:
        yield Stored(Kind.WEIGHT, (rows, columns), self.dtypes)
        yield Stored(Kind.SCALE, (rows, 1), ("F32", "BF16", "F16"))

    def bytes_of(self, rows: int, columns: int) -> int:
        return rows * (columns + 4)

    def canonical(self, kind: Kind, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.float() if kind is Kind.SCALE else tensor

    def kept_scale(self, tensors: Mapping[Kind, torch.Tensor]) -> torch.Tensor | None:
        return tensors[Kind.SCALE]

    def decode(
        self,
        weight: torch.Tensor,
        scale: torch.Tensor | None,
        dtype: torch.dtype,
        halves: int = 1,
    ) -> torch.Tensor:
        import torch

        assert scale is not None
        # By table: see `fp8_block128`.
        codes = weight.view(torch.uint8).flatten().int()
        values = e4m3_values(weight.device).index_select(0, codes)
        return values.view(weight.shape).mul_(scale).to(dtype)

    def sample(self, rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        import torch

        return torch.randn(rows, columns).to(torch.float8_e4m3fn), torch.full((rows, 1), 0.01)


@dataclass(frozen=True)
class Fp8Whole(Fp8Rows):
    """See `NumberFormat`. Stored with one scale, kept as `Fp8Rows` is."""

    name: ClassVar[str] = "fp8-whole"
    label: ClassVar[str] = "fp8 with a scale for each matrix (compressed-tensors, fp8)"
    strategy: ClassVar[str] = "tensor"
    quant_methods: ClassVar[frozenset[str | None]] = frozenset({compressed.METHOD, "fp8"})

    def why_not(self, quantisation: Quantisation) -> str | None:
        block = quantisation.get("weight_block_size")
        if block is not None:
            return f"fp8 with weight_block_size {block} is not supported"
        return super().why_not(quantisation)

    def stored(
        self, rows: int, columns: int, *, transposed: bool, block_layout: bool
    ) -> Iterator[Stored]:
        yield Stored(Kind.WEIGHT, (rows, columns), self.dtypes)
        yield Stored(Kind.SCALE, (1,), ("F32", "BF16", "F16"))

    def kept_scale(self, tensors: Mapping[Kind, torch.Tensor]) -> torch.Tensor | None:
        return tensors[Kind.SCALE].reshape(1, 1).repeat(len(tensors[Kind.WEIGHT]), 1)


FP8_ROWS, FP8_WHOLE = Fp8Rows(), Fp8Whole()
