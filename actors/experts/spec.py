"""What a checkpoint says about its routed experts: the types every other module builds on.

Pure data. `families.py` fills it from a model's `config.json`, `checkpoint.py` reads the tensors it
names, the kernels compute what it describes.
"""

from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from actors.experts.catalog import ExpertCatalog
from actors.experts.formats.base import NumberFormat


class GateActivation(Enum):
    """The gated activation between the two expert GEMMs."""

    SILU = "silu"  # silu(gate) * up
    SWIGLU_OAI = "swiglu_oai"  # gpt-oss: gate * sigmoid(alpha * gate) * (up + 1), both clamped


@dataclass(frozen=True, slots=True)
class Activation:
    """limit: gate is clamped to at most `limit` and up to [-limit, limit] before the product."""

    kind: GateActivation = GateActivation.SILU
    limit: float | None = None
    alpha: float = 1.702


@dataclass(frozen=True, slots=True)
class ExpertSpec:
    """Routed experts of one model.

    architecture:   entry of `architectures` in config.json, for example "Qwen3MoeForCausalLM".
    layers:         model layer indices that have routed experts, ascending.
    num_experts:    logical routed experts per layer (E).
    top_k:          experts per token (K).
    hidden_size:    H; rows on the wire are [T, H] bf16.
    intermediate_size: I of one routed expert.
    has_bias:       experts carry gate/up and down biases (gpt-oss).
    predictors:     how many of `layers`, the last ones, are of multi-token prediction.
    catalog:        where vLLM's own loader finds the tensors; None where `families.py` says it.
    expert_bytes:   of one expert where the format does not say it (`VllmOwn`).
    """

    architecture: str
    model_path: Path
    layers: tuple[int, ...]
    num_experts: int
    top_k: int
    hidden_size: int
    intermediate_size: int
    weight_format: NumberFormat
    activation: Activation
    has_bias: bool = False
    predictors: int = 0
    catalog: ExpertCatalog | None = field(default=None, repr=False)
    expert_bytes: int | None = None

    @property
    def bytes_per_expert(self) -> int:
        """Bytes one (layer, expert) takes in a shard, in its native format with scales."""
        if self.expert_bytes is not None:
            return self.expert_bytes
        hidden, intermediate = self.hidden_size, self.intermediate_size
        gate = self.weight_format.bytes_of(intermediate, hidden)
        down = self.weight_format.bytes_of(hidden, intermediate)
        biases = (2 * intermediate + hidden) * 2 if self.has_bias else 0
        return 2 * gate + down + biases
