"""AWQ's INT4 (version `gemm`): the numbers of `int4_zeros`, packed along the outputs.

`qweight` is int32 [in, out / 8] and `qzeros` [in / group, out / 8]: eight outputs each, those of
`ORDER` from the lowest bits up. `scales` is [in / group, out].
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from actors.experts.formats.base import Kind, Quantisation, Stored
from actors.experts.formats.int4_group import GROUPS, OFFSET, PER_WORD, turned
from actors.experts.formats.int4_zeros import Int4Zeros

if TYPE_CHECKING:
    import torch

ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Which of eight outputs is where in a word, from the lowest bits up."""
WHOLE_ROW = -1
OTHER_NAMES = {"w_bit": "bits", "q_group_size": "group_size"}
"""Of entries in config.json, as AutoAWQ's own files have them."""


@dataclass(frozen=True)
class AwqInt4(Int4Zeros):
    """See `NumberFormat`. Kept as `Int4Zeros` is."""

    name: ClassVar[str] = "awq-int4"
    label: ClassVar[str] = "int4 with zero points in groups of 32, 64, 128 or a row (awq)"
    quant_methods: ClassVar[frozenset[str | None]] = frozenset({"awq"})
    weight_suffix: ClassVar[str | None] = ".qweight"
    scale_suffix: ClassVar[str | None] = ".scales"

    def why_not(self, quantisation: Quantisation) -> str | None:
        entries = {OTHER_NAMES.get(key, key): value for key, value in quantisation.items()}
        entries["version"] = str(entries.get("version", "gemm")).lower()
        wanted: dict[str, Any] = {
            "bits": 4,
            "version": "gemm",
            "zero_point": True,
            "group_size": WHOLE_ROW if self.group is None else self.group,
        }
        for key, value in wanted.items():
            if entries.get(key) != value:
                return f"awq with {key} {entries.get(key)} is not supported"
        return None

    def stored(
        self, rows: int, columns: int, *, transposed: bool, block_layout: bool
    ) -> Iterator[Stored]:
        groups = self._scales(columns)
        yield Stored(Kind.WEIGHT, (columns, rows // PER_WORD), self.dtypes)
        yield Stored(Kind.SCALE, (groups, rows), ("F16", "BF16", "F32"))
        yield Stored(Kind.ZERO, (groups, rows // PER_WORD), ("I32",), ".qzeros")

    def canonical(self, kind: Kind, tensor: torch.Tensor) -> torch.Tensor:
        if kind is Kind.SCALE:
            return turned(tensor).float()
        import torch

        codes = turned(codes_of(tensor))
        if kind is Kind.ZERO:
            return codes.float() - OFFSET
        return (codes[:, 0::2] | codes[:, 1::2] << 4).view(torch.int32)


def codes_of(words: torch.Tensor) -> torch.Tensor:
    """uint8 [n, 8 * words]: the four bits of each output, in the order of outputs."""
    import torch

    octets = words.view(torch.uint8)
    packed = torch.stack([octets & 15, octets >> 4], -1).view(len(words), -1, PER_WORD)
    places = [ORDER.index(output) for output in range(PER_WORD)]
    return packed[..., places].flatten(1)


AWQ_INT4 = tuple(map(AwqInt4, GROUPS))
