"""INT4 in groups: W4A16 checkpoints as compressed-tensors packs them, Kimi-K2-Thinking among them.

`weight_packed` is int32 [out, in / 8]: eight values each, the first in the lowest bits, stored as
value + 8. `weight_scale` is [out, in / group], or [out, 1] where a whole row shares a scale.
`weight_shape` repeats what the model's config says. Symmetric only: there are no zero points.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from actors.experts.formats.base import Kind, Quantisation, Stored

if TYPE_CHECKING:
    import torch

PER_WORD = 8
OFFSET = 8
"""What is stored for zero."""
ORDERS = (None, False, "static", "weight")
"""Values of `actorder` that need no table of columns."""


@dataclass(frozen=True)
class Int4Group:
    """See `NumberFormat`. Scales are kept in fp32. group: columns that share one; None: all."""

    group: int | None

    name: ClassVar[str] = "int4"
    label: ClassVar[str] = "int4 in groups of 32, 64, 128 or a row (compressed-tensors)"
    quant_methods: ClassVar[frozenset[str | None]] = frozenset({"compressed-tensors"})
    dtypes: ClassVar[tuple[str, ...]] = ("I32",)
    weight_suffix: ClassVar[str | None] = ".weight_packed"
    scale_suffix: ClassVar[str | None] = ".weight_scale"

    def why_not(self, quantisation: Quantisation) -> str | None:
        for name, one in (quantisation.get("config_groups") or {}).items():
            weights = one.get("weights") or {}
            wanted = {"num_bits": 4, "type": "int", "symmetric": True, "group_size": self.group}
            for key, value in wanted.items():
                if weights.get(key) != value:
                    return f"compressed-tensors with {key} {weights.get(key)} in {name}"
            if weights.get("actorder") not in ORDERS:
                return f"compressed-tensors with actorder {weights['actorder']} in {name}"
        return None

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

    def decode(
        self,
        weight: torch.Tensor,
        scale: torch.Tensor | None,
        dtype: torch.dtype,
        halves: int = 1,
    ) -> torch.Tensor:
        import torch

        assert scale is not None
        # By table, as MXFP4: a look-up for each byte of a word, the lowest of which comes first.
        codes = weight.view(torch.uint8).flatten().int()
        values = _pairs(weight.device).index_select(0, codes).view(weight.shape[0], -1)
        columns = values.shape[1]
        scales = scale.repeat_interleave(self.group or columns, 1)[:, :columns]
        return values.mul_(scales).to(dtype)

    def sample(self, rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        import torch

        words = torch.randint(-(2**31), 2**31, (rows, columns // PER_WORD)).int()
        return words, torch.full((rows, self._scales(columns)), 0.02)


@functools.cache
def _pairs(device: torch.device) -> torch.Tensor:
    """[256, 2] fp32: the two values of every byte, low nibble first."""
    import torch

    byte = torch.arange(256)
    return (torch.stack([byte & 15, byte >> 4], 1) - OFFSET).float().to(device)


INT4_GROUP32, INT4_GROUP64, INT4_GROUP128 = map(Int4Group, (32, 64, 128))
INT4_ROW = Int4Group(None)
