"""How checkpoints name and shape expert tensors, one `Layout` per way.

A layout answers one question: which tensor, and which part of it, holds gate, up, gate+up fused or
down of a (layer, expert), and the shape and dtype it must have. Reading and checking both go
through `Layout.sources`, so that what is checked is what is read.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from actors.experts.formats.base import Kind
from actors.experts.formats.table import WEIGHT_SUFFIXES
from actors.experts.spec import ExpertSpec


class Part(Enum):
    """Which projection of an expert a tensor holds."""

    GATE = "gate"
    UP = "up"
    GATE_UP = "gate_up"
    DOWN = "down"


@dataclass(frozen=True, slots=True)
class Source:
    """One stored tensor of a (layer, expert).

    expert: index into dimension 0 of a tensor that holds all experts; None if it holds one.
    shape:  of the whole stored tensor.
    dtypes: safetensors dtype names this tensor may have.
    """

    part: Part
    kind: Kind
    name: str
    expert: int | None
    shape: tuple[int, ...]
    dtypes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Layout:
    """One way to store experts.

    experts:      name of the experts of a layer, with `{layer}`.
    projections:  (part, tensor name below one expert, or below `experts` when fused).
    fused:        a tensor holds all experts of a layer, expert first.
    interleaved:  gate and up rows alternate in GATE_UP (else gate rows first, then up).
    transposed:   bf16 matrices are stored [in, out].
    block_layout: MXFP4 as `_blocks` [E, out, in/32, 16] and `_scales` [E, out, in/32].
    weight_suffix, scale_suffix, bias_suffix: appended to the projection's name.
    """

    experts: str
    projections: tuple[tuple[Part, str], ...]
    fused: bool = False
    interleaved: bool = False
    transposed: bool = False
    block_layout: bool = False
    weight_suffix: str = ".weight"
    scale_suffix: str = ".scale"
    bias_suffix: str = "_bias"

    def probes(self, layer: int) -> tuple[str, ...]:
        """One of these tensors exists in `layer` exactly when the checkpoint uses this layout."""
        stem = self._stem(layer, 0, self.projections[-1][1])
        packed = () if self.fused else WEIGHT_SUFFIXES
        return tuple(stem + suffix for suffix in (self.weight_suffix, *packed))

    def sources(self, spec: ExpertSpec, layer: int, expert: int) -> Iterator[Source]:
        """Every tensor needed for one (layer, expert), in the order of `projections`."""
        row = expert if self.fused else None
        for part, projection in self.projections:
            stem = self._stem(layer, expert, projection)
            rows, columns = _matrix_shape(spec, part)
            for kind, suffix, shape, dtypes in self._stored(spec, rows, columns):
                whole = (spec.num_experts, *shape) if self.fused else shape
                yield Source(part, kind, stem + suffix, row, whole, dtypes)

    def _stem(self, layer: int, expert: int, projection: str) -> str:
        base = self.experts.format(layer=layer)
        return f"{base}.{projection}" if self.fused else f"{base}.{expert}.{projection}"

    def _stored(
        self, spec: ExpertSpec, rows: int, columns: int
    ) -> Iterator[tuple[Kind, str, tuple[int, ...], tuple[str, ...]]]:
        """(kind, name suffix, shape of one expert, dtypes) of a [rows, columns] projection."""
        weight_format = spec.weight_format
        suffixes = {
            Kind.WEIGHT: weight_format.weight_suffix or self.weight_suffix,
            Kind.SCALE: weight_format.scale_suffix or self.scale_suffix,
        }
        for one in weight_format.stored(
            rows, columns, transposed=self.transposed, block_layout=self.block_layout
        ):
            suffix = one.suffix or suffixes[one.kind]
            yield one.kind, suffix, one.shape, one.dtypes
        if spec.has_bias:
            yield Kind.BIAS, self.bias_suffix, (rows,), ("BF16",)


def _matrix_shape(spec: ExpertSpec, part: Part) -> tuple[int, int]:
    """[out, in] of a projection."""
    match part:
        case Part.GATE_UP:
            return 2 * spec.intermediate_size, spec.hidden_size
        case Part.DOWN:
            return spec.hidden_size, spec.intermediate_size
        case _:
            return spec.intermediate_size, spec.hidden_size
