"""The format of experts that only vLLM's own layers hold: named, never decoded here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NoReturn

from actors.experts.formats.base import Kind, Quantisation, Stored

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class VllmOwn:
    """See `NumberFormat`. method: the class of vLLM that packs and computes these experts."""

    method: str
    name: ClassVar[str] = "vLLM's own"
    label: ClassVar[str] = "what vLLM loads"
    quant_methods: ClassVar[frozenset[str | None]] = frozenset()
    dtypes: ClassVar[tuple[str, ...]] = ()
    weight_suffix: ClassVar[str | None] = None
    scale_suffix: ClassVar[str | None] = None

    def why_not(self, quantisation: Quantisation) -> str | None:
        return "only vLLM reads it"

    def stored(
        self, rows: int, columns: int, *, transposed: bool, block_layout: bool
    ) -> Iterator[Stored]:
        self._unknown()

    def bytes_of(self, rows: int, columns: int) -> int:
        self._unknown()

    def canonical(self, kind: Kind, tensor: torch.Tensor) -> torch.Tensor:
        self._unknown()

    def kept_scale(self, tensors: Mapping[Kind, torch.Tensor]) -> torch.Tensor | None:
        self._unknown()

    def decode(
        self,
        weight: torch.Tensor,
        scale: torch.Tensor | None,
        dtype: torch.dtype,
        halves: int = 1,
    ) -> torch.Tensor:
        self._unknown()

    def sample(self, rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        self._unknown()

    def _unknown(self) -> NoReturn:
        raise TypeError(f"only vLLM's own layer knows experts of {self.method}")
