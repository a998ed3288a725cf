"""INT8 with one scale for each output row: W8A8 checkpoints as compressed-tensors writes them.

Weights are symmetric, `weight` int8 [out, in] and `weight_scale` [out, 1]. Such models were tested
with rows rounded to int8 as well, token by token; the kernels here keep rows in bf16, which is
closer to the model before it was quantised.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from actors.experts.formats.base import Kind, Quantisation, Stored

if TYPE_CHECKING:
    import torch

WEIGHTS = {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True}
"""What the config has to say of the weights of every group."""


@dataclass(frozen=True)
class Int8Channel:
    """See `NumberFormat`. Scales are kept in fp32."""

    name: ClassVar[str] = "int8"
    label: ClassVar[str] = "int8 with a scale for each output row (compressed-tensors)"
    quant_methods: ClassVar[frozenset[str | None]] = frozenset({"compressed-tensors"})
    dtypes: ClassVar[tuple[str, ...]] = ("I8",)
    weight_suffix: ClassVar[str | None] = None
    scale_suffix: ClassVar[str | None] = ".weight_scale"

    def why_not(self, quantisation: Quantisation) -> str | None:
        for name, group in (quantisation.get("config_groups") or {}).items():
            weights = group.get("weights") or {}
            for key, wanted in WEIGHTS.items():
                if weights.get(key) != wanted:
                    return (
                        f"compressed-tensors with {key} {weights.get(key)} in {name} is not "
                        f"supported; it must be {wanted}"
                    )
        return None

    def stored(
        self, rows: int, columns: int, *, transposed: bool, block_layout: bool
    ) -> Iterator[Stored]:
        yield Stored(Kind.WEIGHT, (rows, columns), self.dtypes)
        yield Stored(Kind.SCALE, (rows, 1), ("BF16", "F32"))

    def bytes_of(self, rows: int, columns: int) -> int:
        return rows * (columns + 4)

    def canonical(self, kind: Kind, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.float() if kind is Kind.SCALE else tensor

    def decode(
        self,
        weight: torch.Tensor,
        scale: torch.Tensor | None,
        dtype: torch.dtype,
        halves: int = 1,
    ) -> torch.Tensor:
        assert scale is not None
        return (weight.float() * scale).to(dtype)

    def sample(self, rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        import torch

        weight = torch.randint(-127, 128, (rows, columns), dtype=torch.int8)
        return weight, torch.full((rows, 1), 0.001)


INT8_CHANNEL = Int8Channel()
