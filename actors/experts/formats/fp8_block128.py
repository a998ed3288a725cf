"""FP8 (e4m3) with one scale for each block of 128 x 128 weights, as DeepSeek-V3 is released, and as
compressed-tensors writes it (`block`).

A value times its scale is rounded to nearest in bf16 (relative 2^-9), and exact there where scales
are powers of two, as DeepSeek-V4's are.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from actors.experts.formats import compressed
from actors.experts.formats.base import FP8_METHODS, Kind, Quantisation, Stored

if TYPE_CHECKING:
    import torch

BLOCK = 128


def blocks_of(rows: int, columns: int) -> tuple[int, int]:
    """Blocks above and beside each other; the last ones may be smaller."""
    return -(-rows // BLOCK), -(-columns // BLOCK)


@dataclass(frozen=True)
class Fp8Block128:
    """See `NumberFormat`. Scales are kept in fp32."""

    name: ClassVar[str] = "fp8"
    label: ClassVar[str] = "fp8 in 128x128 blocks"
    quant_methods: ClassVar[frozenset[str | None]] = FP8_METHODS
    dtypes: ClassVar[tuple[str, ...]] = ("F8_E4M3",)
    weight_suffix: ClassVar[str | None] = None
    scale_suffix: ClassVar[str | None] = None

    def why_not(self, quantisation: Quantisation) -> str | None:
        block = quantisation.get("weight_block_size")
        if quantisation.get("quant_method") != "fp8" or block == [BLOCK, BLOCK]:
            return None
        return f"fp8 with weight_block_size {block} is not supported"

    def stored(
        self, rows: int, columns: int, *, transposed: bool, block_layout: bool
    ) -> Iterator[Stored]:
        yield Stored(Kind.WEIGHT, (rows, columns), self.dtypes)
        yield Stored(Kind.SCALE, blocks_of(rows, columns), ("F32", "BF16", "F8_E8M0"))

    def bytes_of(self, rows: int, columns: int) -> int:
        above, beside = blocks_of(rows, columns)
        return rows * columns + 4 * above * beside

    def canonical(self, kind: Kind, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.float() if kind is Kind.SCALE else tensor

    def kept_scale(self, tensors: Mapping[Kind, torch.Tensor]) -> torch.Tensor | None:
        return tensors.get(Kind.SCALE)

    def decode(
        self,
        weight: torch.Tensor,
        scale: torch.Tensor | None,
        dtype: torch.dtype,
        halves: int = 1,
    ) -> torch.Tensor:
        import torch

        assert scale is not None
        if halves > 1:
            parts = zip(weight.chunk(halves), scale.chunk(halves), strict=True)
            return torch.cat([self.decode(part, blocks, dtype) for part, blocks in parts])
        # By table: ten times faster than torch's own conversion on a CPU.
        codes = weight.view(torch.uint8).flatten().int()
        values = e4m3_values(weight.device).index_select(0, codes)
        rows, columns = weight.shape
        blocks = scale.repeat_interleave(BLOCK, 0)[:rows]
        blocks = blocks.repeat_interleave(BLOCK, 1)[:, :columns]
        return (values.view(rows, columns) * blocks).to(dtype)

    def sample(self, rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        import torch

        scale = torch.full(blocks_of(rows, columns), 0.01)
        return torch.randn(rows, columns).to(torch.float8_e4m3fn), scale


@dataclass(frozen=True)
class CompressedFp8Block128(Fp8Block128):
    """See `NumberFormat`. Kept, and computed by all kernels, as `Fp8Block128` is."""

    label: ClassVar[str] = "fp8 in 128x128 blocks (compressed-tensors)"
    quant_methods: ClassVar[frozenset[str | None]] = frozenset({compressed.METHOD})
    scale_suffix: ClassVar[str | None] = ".weight_scale"

    def why_not(self, quantisation: Quantisation) -> str | None:
        wanted = {
            "num_bits": (8,),
            "type": ("float",),
            "symmetric": (True,),
            "strategy": ("block",),
            "block_structure": ([BLOCK, BLOCK],),
        }
        return compressed.other_weights(quantisation, wanted)


@functools.cache
def e4m3_values(device: torch.device) -> torch.Tensor:
    """[256] fp32: the value of every e4m3 byte."""
    import torch

    return torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float().to(device)


FP8_BLOCK128, COMPRESSED_FP8_BLOCK128 = Fp8Block128(), CompressedFp8Block128()
