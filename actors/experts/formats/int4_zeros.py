"""INT4 with zero points: what is stored means (value - zero point) * scale.

As compressed-tensors packs it: `int4_group` with `weight_zero_point`, int32 [out / 8, in / group],
eight rows of a group in a word, the first in the lowest bits and stored as zero point + 8.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from actors.experts.formats.base import Kind, Stored
from actors.experts.formats.int4_group import GROUPS, PER_WORD, Int4Group, levels, turned

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Int4Zeros(Int4Group):
    """See `NumberFormat`. Weights are kept as `Int4Group` does, scales as fp32 pairs
    [out, in / group, 2] of scale and zero point, less 8."""

    symmetric: ClassVar[bool] = False
    name: ClassVar[str] = "int4-zeros"
    label: ClassVar[str] = (
        "int4 with zero points in groups of 32, 64, 128 or a row (compressed-tensors)"
    )

    def stored(
        self, rows: int, columns: int, *, transposed: bool, block_layout: bool
    ) -> Iterator[Stored]:
        yield from super().stored(rows, columns, transposed=transposed, block_layout=block_layout)
        packed = (-(-rows // PER_WORD), self._scales(columns))
        yield Stored(Kind.ZERO, packed, ("I32",), ".weight_zero_point")

    def bytes_of(self, rows: int, columns: int) -> int:
        return rows * (columns // 2 + 8 * self._scales(columns))

    def canonical(self, kind: Kind, tensor: torch.Tensor) -> torch.Tensor:
        if kind is Kind.ZERO:
            return levels(turned(tensor)).T
        return super().canonical(kind, tensor)

    def kept_scale(self, tensors: Mapping[Kind, torch.Tensor]) -> torch.Tensor | None:
        import torch

        scale = tensors[Kind.SCALE]
        # The last word of zero points may stand for rows that are not there.
        return torch.stack([scale, tensors[Kind.ZERO][: len(scale)]], -1)

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
        spread = scale.repeat_interleave(self.group or columns, 1)[:, :columns]
        return values.sub_(spread[..., 1]).mul_(spread[..., 0]).to(dtype)

    def sample(self, rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        import torch

        words, scale = super().sample(rows, columns)
        assert scale is not None
        return words, torch.stack([scale, torch.full_like(scale, 1)], -1)


INT4_ZEROS = tuple(map(Int4Zeros, GROUPS))
