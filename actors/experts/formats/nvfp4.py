"""NVFP4: two e2m1 values in a byte, an e4m3 scale for 16 columns, an fp32 scale for the matrix.

compressed-tensors (`nvfp4-pack-quantized`) stores `weight_packed`, `weight_scale` and
`weight_global_scale`, by which scales are divided; modelopt stores `weight`, `weight_scale` and
`weight_scale_2`, by which they are multiplied. Scales of rows' values (`input_global_scale`,
`input_scale`) are not read: rows stay bf16.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from actors.experts.formats import compressed
from actors.experts.formats.base import Kind, Quantisation, Stored
from actors.experts.formats.mxfp4 import e2m1_pairs

if TYPE_CHECKING:
    import torch

BLOCK = 16


@dataclass(frozen=True)
class Nvfp4:
    """See `NumberFormat`. Weights are kept as bytes, the product of both scales in fp32."""

    name: ClassVar[str] = "nvfp4"
    label: ClassVar[str] = "nvfp4 (compressed-tensors)"
    quant_methods: ClassVar[frozenset[str | None]] = frozenset({compressed.METHOD})
    dtypes: ClassVar[tuple[str, ...]] = ("U8",)
    weight_suffix: ClassVar[str | None] = ".weight_packed"
    scale_suffix: ClassVar[str | None] = ".weight_scale"
    whole_suffix: ClassVar[str] = ".weight_global_scale"

    def why_not(self, quantisation: Quantisation) -> str | None:
        wanted = {
            "num_bits": (4,),
            "type": ("float",),
            "symmetric": (True, None),
            "group_size": (BLOCK,),
        }
        return compressed.other_weights(quantisation, wanted)

    def stored(
        self, rows: int, columns: int, *, transposed: bool, block_layout: bool
    ) -> Iterator[Stored]:
        yield Stored(Kind.WEIGHT, (rows, columns // 2), self.dtypes)
        yield Stored(Kind.SCALE, (rows, columns // BLOCK), ("F8_E4M3",))
        yield Stored(Kind.WHOLE, (1,), ("F32",), self.whole_suffix)

    def bytes_of(self, rows: int, columns: int) -> int:
        return rows * (columns // 2 + 4 * (columns // BLOCK))

    def canonical(self, kind: Kind, tensor: torch.Tensor) -> torch.Tensor:
        return tensor if kind is Kind.WEIGHT else tensor.float()

    def kept_scale(self, tensors: Mapping[Kind, torch.Tensor]) -> torch.Tensor | None:
        return tensors[Kind.SCALE] / tensors[Kind.WHOLE]

    def decode(
        self,
        weight: torch.Tensor,
        scale: torch.Tensor | None,
        dtype: torch.dtype,
        halves: int = 1,
    ) -> torch.Tensor:
        import torch

        assert scale is not None
        pairs = e2m1_pairs(weight.device, torch.float32).index_select(0, weight.flatten().int())
        values = pairs.view(torch.float32).view(*scale.shape, BLOCK)
        return values.mul_(scale.unsqueeze(-1)).flatten(1).to(dtype)

    def sample(self, rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        import torch

        packed = torch.randint(0, 256, (rows, columns // 2), dtype=torch.uint8)
        return packed, torch.full((rows, columns // BLOCK), 0.01)


@dataclass(frozen=True)
class ModeloptNvfp4(Nvfp4):
    """See `NumberFormat`. Kept as `Nvfp4` is."""

    label: ClassVar[str] = "nvfp4 (modelopt)"
    quant_methods: ClassVar[frozenset[str | None]] = frozenset({"modelopt", "modelopt_fp4"})
    weight_suffix: ClassVar[str | None] = None
    whole_suffix: ClassVar[str] = ".weight_scale_2"

    def why_not(self, quantisation: Quantisation) -> str | None:
        inner = quantisation.get("quantization") or {}  # as in older files
        algorithm = quantisation.get("quant_algo") or inner.get("quant_algo")
        return None if algorithm == "NVFP4" else f"modelopt with {algorithm} is not supported"

    def kept_scale(self, tensors: Mapping[Kind, torch.Tensor]) -> torch.Tensor | None:
        return tensors[Kind.SCALE] * tensors[Kind.WHOLE]


NVFP4, MODELOPT_NVFP4 = Nvfp4(), ModeloptNvfp4()
