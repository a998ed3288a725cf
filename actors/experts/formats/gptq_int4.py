"""GPTQ's INT4: the numbers of `int4_group`, stored the other way round.

`qweight` is int32 [in / 8, out]: eight values of a column each, the first in the lowest bits.
`scales` is [in / group, out]. Symmetric checkpoints in the order of their columns only: then
`qzeros` say 8 everywhere and `g_idx` counts columns, and neither is read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from actors.experts.formats.base import Kind, Quantisation, Stored
from actors.experts.formats.int4_group import PER_WORD, Int4Group

if TYPE_CHECKING:
    import torch

WHOLE_ROW = -1


@dataclass(frozen=True)
class GptqInt4(Int4Group):
    """See `NumberFormat`. Kept as `Int4Group` is."""

    name: ClassVar[str] = "gptq-int4"
    label: ClassVar[str] = "int4 in groups of 32, 64, 128 or a row (gptq)"
    quant_methods: ClassVar[frozenset[str | None]] = frozenset({"gptq"})
    weight_suffix: ClassVar[str | None] = ".qweight"
    scale_suffix: ClassVar[str | None] = ".scales"

    def why_not(self, quantisation: Quantisation) -> str | None:
        group = WHOLE_ROW if self.group is None else self.group
        wanted = {"bits": 4, "sym": True, "desc_act": False, "group_size": group}
        for key, value in wanted.items():
            if quantisation.get(key) != value:
                return f"gptq with {key} {quantisation.get(key)} is not supported"
        return None

    def stored(
        self, rows: int, columns: int, *, transposed: bool, block_layout: bool
    ) -> Iterator[Stored]:
        yield Stored(Kind.WEIGHT, (columns // PER_WORD, rows), self.dtypes)
        yield Stored(Kind.SCALE, (self._scales(columns), rows), ("BF16", "F16", "F32"))

    def canonical(self, kind: Kind, tensor: torch.Tensor) -> torch.Tensor:
        import torch

        # `contiguous` would leave the strides of a single column as they are.
        turned = tensor.T.clone(memory_format=torch.contiguous_format)
        return turned.float() if kind is Kind.SCALE else turned


GPTQ_GROUP32, GPTQ_GROUP64, GPTQ_GROUP128 = map(GptqInt4, (32, 64, 128))
GPTQ_ROW = GptqInt4(None)
