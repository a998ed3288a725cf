"""How far from the reference a right implementation may be, and what is beyond that.

The bounds are the model's own: `reference` rounds the output of every module to bf16 and says how
far that alone moves logprobs. Against monolithic vLLM, which rounds in the same places, a mesh has
to be as near as one such rounding; against fp32 both have more places to round than the reference
has modules. A scale is found by a matched filter: differences along the direction in which scaled
experts move the logprobs, where rounding has no direction.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.harness.equality import Comparison
from benchmarks.harness.report import Target

REFERENCE_FACTOR = 2.0
"""Roundings inside of modules, beside those of their outputs."""
SCALE_PERCENT = 0.3
"""Rounding the tiny models shows up as 0.2 at most, a scale of 1 % as 0.44 to 0.92."""
TIE_QUANTILE = 0.99
OUTLIER = 6.0
"""Times the median beyond which a difference is a router that chose another expert."""


class Noise:
    """What the reference says of rounding: `answer` of `benchmarks.harness.reference`."""

    def __init__(self, answer: dict[str, Any]) -> None:
        self.exact = np.concatenate(answer["exact"])
        self.direction = np.concatenate(answer["scaled"]) - self.exact
        rounded = [np.concatenate(run) for run in answer["rounded"]]
        self.shifts = np.abs(np.stack(rounded) - self.exact)

    @property
    def mean(self) -> float:
        return float(self.shifts.mean())

    @property
    def tie(self) -> float:
        """Gap of two logprobs that rounding may well turn around."""
        return 2.0 * float(np.quantile(self.shifts, TIE_QUANTILE))

    def scale_percent(self, difference: np.ndarray) -> float:
        """How much larger experts' outputs are, to judge by logprobs [N] that differ so much."""
        used = usual(difference) & usual(self.direction)
        along = self.direction[used]
        return float(difference[used] @ along / (along @ along))


def usual(values: np.ndarray) -> np.ndarray:
    """bool [N]: all but the outliers, which would outweigh everything else."""
    size = np.abs(values)
    return size <= OUTLIER * max(float(np.median(size)), 1e-9)


def targets_of(model: str, meshes: Sequence[Comparison], noise: Noise) -> list[Target]:
    """The worst mesh counts."""
    whole = max(mesh.mean_delta for mesh in meshes)
    exact = max(float(np.abs(mesh.own - noise.exact).mean()) for mesh in meshes)
    scale = max(abs(noise.scale_percent(mesh.own - mesh.whole)) for mesh in meshes)
    gap = max(mesh.worst_gap for mesh in meshes)
    return [
        Target(f"{model}: mean |Δlogprob| to vLLM", whole, noise.mean, "max", "nats"),
        Target(
            f"{model}: mean |Δlogprob| to fp32", exact, REFERENCE_FACTOR * noise.mean, "max", "nats"
        ),
        Target(f"{model}: experts larger by", scale, SCALE_PERCENT, "max", "%"),
        Target(f"{model}: top-2 gap at a first divergence", gap, noise.tie, "max", "nats"),
    ]
