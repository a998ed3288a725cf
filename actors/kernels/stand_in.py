"""Whether experts of another checkpoint compute what the mesh's do, within a tolerance.

One expert in each of some layers computes probe rows, in the kernel that will serve it; the base
checkpoint's own expert computes the same rows in fp32. The relative error of the worst one must be
within the tolerance that the config states. Shards pick different experts, so more shards look at
more of them; an expert that none picks is not looked at.
"""

from hashlib import sha256

import numpy as np
import torch

from actors.experts.refusal import ModelRefused
from actors.experts.spec import ExpertSpec
from actors.kernels.choose import choose_kernel
from actors.kernels.slot_kernel import SlotKernel

ROWS = 8
"""Probe rows of each expert, normally distributed as rows after a norm are."""
MOST_LAYERS = 16
SEED = 15


def check_results(
    kernel: SlotKernel, variant: ExpertSpec, base: ExpertSpec, tolerance: float, who: str
) -> float:
    """The largest relative error found. kernel: of the variant, holding nothing, as it does after.

    who: whoever asks, picks experts of its own.

    Raises:
        ModelRefused: an expert's results are further apart than `tolerance`.
    """
    plain = "torch_portable" if base.catalog is None else None
    reference = choose_kernel(base, torch.device("cpu"), kernel=plain)
    worst = 0.0
    for layer in probed_layers(variant.layers):
        expert = probed_expert(who, layer, variant.num_experts)
        apart = relative_error(kernel, reference, layer, expert, variant.hidden_size)
        if not apart <= tolerance:  # also where it is no number
            raise ModelRefused(
                f"{variant.model_path} does not stand in for {base.model_path}: probe rows through "
                f"expert {expert} of layer {layer} come out {apart:.3g} apart, "
                f"the pool's checkpoint_tolerance is {tolerance:g}"
            )
        worst = max(worst, apart)
    return worst


def probed_layers(layers: tuple[int, ...]) -> tuple[int, ...]:
    """At most `MOST_LAYERS` of them, the first and the last among them."""
    if len(layers) <= MOST_LAYERS:
        return layers
    last = len(layers) - 1
    return tuple(layers[number * last // (MOST_LAYERS - 1)] for number in range(MOST_LAYERS))


def probed_expert(who: str, layer: int, experts: int) -> int:
    """The one that `who` looks at."""
    return int.from_bytes(sha256(f"{who}/{layer}".encode()).digest()[:8]) % experts


def relative_error(
    kernel: SlotKernel, reference: SlotKernel, layer: int, expert: int, hidden: int
) -> float:
    """Of one expert's outputs: norm of the difference over norm of the reference."""
    drawn = np.random.default_rng(SEED).standard_normal((ROWS, hidden), np.float32)
    rows = torch.from_numpy(drawn).bfloat16()
    every = torch.arange(ROWS, dtype=torch.int32)
    chosen = torch.full((ROWS,), expert, dtype=torch.int32)
    found = []
    for one in (kernel, reference):
        one.load(layer, [expert])
        found.append(one.compute(layer, rows, every, chosen, torch.ones(ROWS)))
        one.load(layer, [])
    theirs, ours = found
    return float((theirs - ours).norm() / ours.norm())
