"""INT8 with one scale for each output row, or for 32, 64 or 128 columns of it.

Checkpoints of compressed-tensors whose rows are rounded to int8 as well: W8A8, and W4A8, which has
weights of four bits in bytes of their own. Weights are symmetric, `weight` int8 [out, in] and
`weight_scale` [out, in / group], or [out, 1]. Such models were tested with rows rounded to int8,
token by token; the kernels here keep rows in bf16, which is closer to the model before it was
quantised.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from actors.experts.formats import compressed
from actors.experts.formats.base import Kind, Quantisation, Stored
from actors.experts.formats.int4_group import GROUPS

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Int8Rows:
    """See `NumberFormat`. Scales are kept in fp32. group: columns that share one; None: all."""

    group: int | None

    name: ClassVar[str] = "int8"
    label: ClassVar[str] = "int8 in groups of 32, 64, 128 or a row (compressed-tensors)"
    quant_methods: ClassVar[frozenset[str | None]] = frozenset({compressed.METHOD})
    dtypes: ClassVar[tuple[str, ...]] = ("I8",)
    weight_suffix: ClassVar[str | None] = None
    scale_suffix: ClassVar[str | None] = ".weight_scale"

    def why_not(self, quantisation: Quantisation) -> str | None:
        wanted = {
            "num_bits": (4, 8),
            "type": ("int",),
            "symmetric": (True,),
            "actorder": compressed.ORDERS,
            "group_size": (self.group,),
        }
        return compressed.other_weights(quantisation, wanted)

    def _scales(self, columns: int) -> int:
        return 1 if self.group is None else -(-columns // self.group)

    def stored(
        self, rows: int, columns: int, *, transposed: bool, block_layout: bool
    ) -> Iterator[Stored]:
        yield Stored(Kind.WEIGHT, (rows, columns), self.dtypes)
        yield Stored(Kind.SCALE, (rows, self._scales(columns)), ("BF16", "F16", "F32"))

    def bytes_of(self, rows: int, columns: int) -> int:
        return rows * (columns + 4 * self._scales(columns))

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
        columns = weight.shape[1]
        scales = scale.repeat_interleave(self.group or columns, 1)[:, :columns]
        return (weight.float() * scales).to(dtype)

    def sample(self, rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        import torch

        weight = torch.randint(-127, 128, (rows, columns), dtype=torch.int8)
        return weight, torch.full((rows, self._scales(columns)), 0.001)


INT8 = INT8_GROUP32, INT8_GROUP64, INT8_GROUP128, INT8_ROW = tuple(map(Int8Rows, GROUPS))
