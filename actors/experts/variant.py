"""Checkpoints of one model in several formats: what has to be alike for one to stand in."""

from actors.experts.refusal import ModelRefused
from actors.experts.spec import ExpertSpec

ALIKE = (
    "architecture", "layers", "num_experts", "top_k", "hidden_size", "intermediate_size",
    "activation", "has_bias",
)  # fmt: skip
"""All of a spec but its format and where it lies."""


def check_shapes(variant: ExpertSpec, base: ExpertSpec) -> None:
    """Raises ModelRefused, naming the first difference."""
    for name in ALIKE:
        theirs, ours = getattr(variant, name), getattr(base, name)
        if theirs != ours:
            raise ModelRefused(
                f"{variant.model_path} cannot stand in for {base.model_path}: "
                f"its {name} is {theirs}, not {ours}"
            )
