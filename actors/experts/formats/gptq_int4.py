"""GPTQ's INT4: the numbers of `int4_group` and `int4_zeros`, stored the other way round.

`qweight` is int32 [in / 8, out]: eight values of a column each, the first in the lowest bits.
`scales` is [in / group, out], `qzeros` int32 [in / group, out / 8]: zero points of eight outputs
each, one too small (`checkpoint_format: gptq`, or none) or as they are (`gptq_v2`). In symmetric
checkpoints they are 8 everywhere and not read. Columns have to be in their order (no `desc_act`):
then `g_idx` counts them and is not read either.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from actors.experts.formats.base import Kind, Quantisation, Stored
from actors.experts.formats.int4_group import GROUPS, PER_WORD, Int4Group, levels, turned
from actors.experts.formats.int4_zeros import Int4Zeros

if TYPE_CHECKING:
    import torch

WHOLE_ROW = -1
SUBTRACTED = {None: 1, "gptq": 1, "gptq_v2": 0}
"""`checkpoint_format` -> what is subtracted from a zero point before it is stored."""
SCALES = ("BF16", "F16", "F32")


def other_entry(
    quantisation: Quantisation, group: int | None, wanted: dict[str, tuple[Any, ...]]
) -> str | None:
    wanted = {
        "bits": (4,),
        "desc_act": (False,),
        "group_size": (WHOLE_ROW if group is None else group,),
    } | wanted
    for key, values in wanted.items():
        if quantisation.get(key) not in values:
            return f"gptq with {key} {quantisation.get(key)} is not supported"
    return None


@dataclass(frozen=True)
class GptqInt4(Int4Group):
    """See `NumberFormat`. Kept as `Int4Group` is."""

    name: ClassVar[str] = "gptq-int4"
    label: ClassVar[str] = "int4 in groups of 32, 64, 128 or a row (gptq)"
    quant_methods: ClassVar[frozenset[str | None]] = frozenset({"gptq"})
    weight_suffix: ClassVar[str | None] = ".qweight"
    scale_suffix: ClassVar[str | None] = ".scales"

    def why_not(self, quantisation: Quantisation) -> str | None:
        wanted = {"checkpoint_format": tuple(SUBTRACTED), "sym": (True,)}
        return other_entry(quantisation, self.group, wanted)

    def stored(
        self, rows: int, columns: int, *, transposed: bool, block_layout: bool
    ) -> Iterator[Stored]:
        yield Stored(Kind.WEIGHT, (columns // PER_WORD, rows), self.dtypes)
        yield Stored(Kind.SCALE, (self._scales(columns), rows), SCALES)

    def canonical(self, kind: Kind, tensor: torch.Tensor) -> torch.Tensor:
        return turned(tensor).float() if kind is Kind.SCALE else turned(tensor)


@dataclass(frozen=True)
class GptqInt4Zeros(Int4Zeros):
    """See `NumberFormat`. Kept as `Int4Zeros` is. subtracted: see `SUBTRACTED`."""

    subtracted: int = 1

    name: ClassVar[str] = "gptq-int4-zeros"
    label: ClassVar[str] = "int4 with zero points in groups of 32, 64, 128 or a row (gptq)"
    quant_methods: ClassVar[frozenset[str | None]] = frozenset({"gptq"})
    weight_suffix: ClassVar[str | None] = ".qweight"
    scale_suffix: ClassVar[str | None] = ".scales"

    def why_not(self, quantisation: Quantisation) -> str | None:
        names = tuple(name for name, less in SUBTRACTED.items() if less == self.subtracted)
        wanted = {"sym": (False,), "checkpoint_format": names}
        return other_entry(quantisation, self.group, wanted)

    def stored(
        self, rows: int, columns: int, *, transposed: bool, block_layout: bool
    ) -> Iterator[Stored]:
        groups = self._scales(columns)
        yield Stored(Kind.WEIGHT, (columns // PER_WORD, rows), self.dtypes)
        yield Stored(Kind.SCALE, (groups, rows), SCALES)
        yield Stored(Kind.ZERO, (groups, rows // PER_WORD), ("I32",), ".qzeros")

    def canonical(self, kind: Kind, tensor: torch.Tensor) -> torch.Tensor:
        if kind is Kind.ZERO:
            return levels(tensor).T + self.subtracted
        return turned(tensor).float() if kind is Kind.SCALE else turned(tensor)


GPTQ_INT4 = tuple(map(GptqInt4, GROUPS))
GPTQ_INT4_ZEROS = tuple(GptqInt4Zeros(group, less) for less in (1, 0) for group in GROUPS)
