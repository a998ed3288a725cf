"""A number format is one object: which checkpoints it reads, what they store, bytes, decoding.

A format that is not here is one more module beside this one and one line in `table.py`. Kernels
compare `spec.weight_format` with the formats they compute; `decode` gives every other kernel the
weights in a float type.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    import torch

Quantisation = Mapping[str, Any]
"""`quantization_config` of a model's config.json; empty where there is none."""

FP8_METHODS = frozenset({None, "fp8", "mxfp4"})
"""Values of `quant_method` under which experts are stored by the rules of the model's release."""


class Kind(Enum):
    """What a tensor is to its projection."""

    WEIGHT = "weight"
    SCALE = "scale"
    ZERO = "zero point"
    WHOLE = "scale of the whole matrix"
    BIAS = "bias"


@dataclass(frozen=True, slots=True)
class Stored:
    """One tensor of a projection as a checkpoint stores it.

    shape: (1,) also stands for a number without dimensions. dtypes: safetensors' names.
    suffix: of its name; weights and scales may leave it to their format, or that to the layout.
    """

    kind: Kind
    shape: tuple[int, ...]
    dtypes: tuple[str, ...]
    suffix: str | None = None


class NumberFormat(Protocol):
    """How expert weights are stored, and how a shard keeps them. Formats of one class are equal.

    name: in logs, status and benchmarks. label: in refusals, which list what is supported.
    quant_methods: values of `quant_method` it is stored under. dtypes: safetensors' names of those
    its weights may have. weight_suffix, scale_suffix: of the tensors' names; None: as the model's
    layout says.
    """

    name: ClassVar[str]
    label: ClassVar[str]
    quant_methods: ClassVar[frozenset[str | None]]
    dtypes: ClassVar[tuple[str, ...]]
    weight_suffix: ClassVar[str | None]
    scale_suffix: ClassVar[str | None]

    def why_not(self, quantisation: Quantisation) -> str | None:
        """What of a checkpoint's quantisation this format does not read, in one phrase.

        Asked only where `quant_method` and the weights' dtype are among this format's.
        """
        ...

    def stored(
        self, rows: int, columns: int, *, transposed: bool, block_layout: bool
    ) -> Iterator[Stored]:
        """The tensors of a [rows, columns] projection; the flags are those of `Layout`."""
        ...

    def bytes_of(self, rows: int, columns: int) -> int:
        """Bytes that a shard keeps of a [rows, columns] projection, scales included."""
        ...

    def canonical(self, kind: Kind, tensor: torch.Tensor) -> torch.Tensor:
        """A stored tensor other than a bias: weights in the form `ExpertTensors` has them in, the
        others ready for `kept_scale`."""
        ...

    def kept_scale(self, tensors: Mapping[Kind, torch.Tensor]) -> torch.Tensor | None:
        """The one scale `ExpertTensors` has of a projection, from its canonical tensors."""
        ...

    def decode(
        self,
        weight: torch.Tensor,
        scale: torch.Tensor | None,
        dtype: torch.dtype,
        halves: int = 1,
    ) -> torch.Tensor:
        """One matrix [out, in] in `dtype`, rounded to nearest.

        halves: matrices one above the other in it, whose blocks start anew (2 for w13).
        """
        ...

    def sample(self, rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Weight and scale of no particular values, for measuring."""
        ...
