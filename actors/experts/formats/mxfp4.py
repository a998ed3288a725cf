"""MXFP4: two e2m1 values in a byte, one e8m0 scale for 32 columns. Exact in bf16."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from actors.experts.formats.base import FP8_METHODS, Kind, Quantisation, Stored

if TYPE_CHECKING:
    import torch

BLOCK = 32
E2M1_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
FLOAT32_MANTISSA_BITS = 23


@dataclass(frozen=True)
class Mxfp4:
    """See `NumberFormat`. Weights and scales are kept as bytes."""

    name: ClassVar[str] = "mxfp4"
    label: ClassVar[str] = "mxfp4"
    quant_methods: ClassVar[frozenset[str | None]] = FP8_METHODS
    dtypes: ClassVar[tuple[str, ...]] = ("I8", "U8")
    weight_suffix: ClassVar[str | None] = None
    scale_suffix: ClassVar[str | None] = None

    def why_not(self, quantisation: Quantisation) -> str | None:
        return None

    def stored(
        self, rows: int, columns: int, *, transposed: bool, block_layout: bool
    ) -> Iterator[Stored]:
        groups = -(-columns // BLOCK)
        packed = (rows, groups, BLOCK // 2) if block_layout else (rows, columns // 2)
        yield Stored(Kind.WEIGHT, packed, self.dtypes)
        yield Stored(Kind.SCALE, (rows, groups), ("F8_E8M0", "U8"))

    def bytes_of(self, rows: int, columns: int) -> int:
        return rows * (columns // 2 + -(-columns // BLOCK))

    def canonical(self, kind: Kind, tensor: torch.Tensor) -> torch.Tensor:
        import torch

        tensor = tensor.view(torch.uint8)
        return tensor.flatten(1) if kind is Kind.WEIGHT else tensor

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
        codes = weight.view(torch.uint8).flatten().int()
        pairs = e2m1_pairs(weight.device, dtype).index_select(0, codes)
        grouped = pairs.view(dtype).view(weight.shape[0], -1, BLOCK)
        return (grouped * power_of_two(scale).to(dtype).unsqueeze(-1)).flatten(1)

    def sample(self, rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        import torch

        packed = torch.randint(0, 256, (rows, columns // 2), dtype=torch.uint8)
        return packed, torch.full((rows, columns // BLOCK), 120, dtype=torch.uint8)


def power_of_two(e8m0: torch.Tensor) -> torch.Tensor:
    """fp32 2 ** (byte - 127), the byte being fp32's own exponent; byte 0 (2^-127) reads as 0."""
    import torch

    return (e8m0.int() << FLOAT32_MANTISSA_BITS).view(torch.float32)


@functools.cache
def e2m1_pairs(device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """[256]: the two values of every byte, low nibble first, in `dtype` side by side in one
    integer, so that one look-up fetches both."""
    import torch

    nibble = torch.tensor(E2M1_VALUES + tuple(-value for value in E2M1_VALUES), dtype=dtype)
    byte = torch.arange(256)
    pairs = torch.stack([nibble[byte & 15], nibble[byte >> 4]], 1)
    as_integer = torch.int32 if dtype.itemsize == 2 else torch.int64
    return pairs.view(as_integer).flatten().to(device)


MXFP4 = Mxfp4()
