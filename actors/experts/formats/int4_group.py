"""INT4 in groups: W4A16 checkpoints as compressed-tensors packs them, Kimi-K2-Thinking among them.

`weight_packed` is int32 [out, in / 8]: eight values each, the first in the lowest bits, stored as
value + 8. `weight_scale` is [out, in / group], or [out, 1] where a whole row shares a scale.
`weight_shape` repeats what the model's config says. Symmetric: `int4_zeros` has zero points.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from actors.experts.formats import compressed
from actors.experts.formats.base import Kind, Quantisation, Stored

if TYPE_CHECKING:
    import torch

GROUPS = (32, 64, 128, None)
"""Columns that share a scale; None: a whole row does."""
PER_WORD = 8
OFFSET = 8
"""What is stored for zero."""


@dataclass(frozen=True)
class Int4Group:
    """See `NumberFormat`. Scales are kept in fp32. group: columns that share one; None: all."""

    group: int | None

    symmetric: ClassVar[bool] = True
    name: ClassVar[str] = "int4"
    label: ClassVar[str] = "int4 in groups of 32, 64, 128 or a row (compressed-tensors)"
    quant_methods: ClassVar[frozenset[str | None]] = frozenset({compressed.METHOD})
    dtypes: ClassVar[tuple[str, ...]] = ("I32",)
    weight_suffix: ClassVar[str | None] = ".weight_packed"
    scale_suffix: ClassVar[str | None] = ".weight_scale"

    def why_not(self, quantisation: Quantisation) -> str | None:
        wanted = {
            "num_bits": (4,),
            "type": ("int",),
            "actorder": compressed.ORDERS,
            "group_size": (self.group,),
            "symmetric": (self.symmetric,),
        }
        return compressed.other_weights(quantisation, wanted)

    def _scales(self, columns: int) -> int:
        return 1 if self.group is None else -(-columns // self.group)

    def stored(
        self, rows: int, columns: int, *, transposed: bool, block_layout: bool
    ) -> Iterator[Stored]:
        yield Stored(Kind.WEIGHT, (rows, columns // PER_WORD), self.dtypes)
        yield Stored(Kind.SCALE, (rows, self._scales(columns)), ("BF16", "F16", "F32"))

    def bytes_of(self, rows: int, columns: int) -> int:
        return rows * (columns // 2 + 4 * self._scales(columns))

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

        assert scale is not None
        values = levels(weight)
        columns = values.shape[1]
        scales = scale.repeat_interleave(self.group or columns, 1)[:, :columns]
        return values.mul_(scales).to(dtype)

    def sample(self, rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        import torch

        words = torch.randint(-(2**31), 2**31, (rows, columns // PER_WORD)).int()
        return words, torch.full((rows, self._scales(columns)), 0.02)


def turned(tensor: torch.Tensor) -> torch.Tensor:
    """[n, m] -> [m, n], row after row in memory."""
    import torch

    # `contiguous` would leave the strides of a single column as they are.
    return tensor.T.clone(memory_format=torch.contiguous_format)


def levels(words: torch.Tensor) -> torch.Tensor:
    """fp32 [rows, 8 * words]: what is stored, less `OFFSET`."""
    import torch

    # By table, as MXFP4: a look-up for each byte of a word, the lowest of which comes first.
    codes = words.view(torch.uint8).flatten().int()
    return _pairs(words.device).index_select(0, codes).view(len(words), -1)


@functools.cache
def _pairs(device: torch.device) -> torch.Tensor:
    """[256, 2] fp32: the two values of every byte, low nibble first."""
    import torch

    byte = torch.arange(256)
    return (torch.stack([byte & 15, byte >> 4], 1) - OFFSET).float().to(device)


INT4 = INT4_GROUP32, INT4_GROUP64, INT4_GROUP128, INT4_ROW = tuple(map(Int4Group, GROUPS))
