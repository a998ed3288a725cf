"""Experts one after another: a loop over the slots a call uses, two GEMMs for each.

Assignments are sorted by slot, so a slot's rows are neighbours, and everything but the GEMMs runs
once per call. For operators that have no fused kernel.
"""

from collections.abc import Callable

import torch

from actors.experts.spec import Activation
from actors.kernels.gated import gated_product

Linear = Callable[[int, torch.Tensor], torch.Tensor]


def run_grouped(
    rows: torch.Tensor,
    slots: torch.Tensor,
    weights: torch.Tensor,
    *,
    gate_up: Linear,
    down: Linear,
    activation: Activation,
) -> torch.Tensor:
    """[A, H] fp32 weighted outputs of rows [A, H] through slots [A].

    gate_up(slot, x [n, H]) -> [n, 2I]; down(slot, x [n, I]) -> [n, H]; both add their bias. What
    `down` gets has the dtype of what `gate_up` returned.
    """
    order = torch.argsort(slots, stable=True)
    used, counts = torch.unique_consecutive(slots[order], return_counts=True)
    spans, start = [], 0
    for slot, count in zip(used.tolist(), counts.tolist(), strict=True):
        spans.append((slot, slice(start, start + count)))
        start += count
    hidden = _each_slot(gate_up, rows[order], spans)
    activated = gated_product(hidden, activation).to(hidden.dtype)
    outputs = _each_slot(down, activated, spans).float() * weights[order].unsqueeze(1)
    unsorted = torch.empty_like(outputs)
    unsorted[order] = outputs
    return unsorted


def _each_slot(
    linear: Linear, inputs: torch.Tensor, spans: list[tuple[int, slice]]
) -> torch.Tensor:
    return torch.cat([linear(slot, inputs[span]) for slot, span in spans])
