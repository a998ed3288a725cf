"""Experts computed in the engine's own process, to tell what the kernel gives and the links cost.

`engine_process` puts this in the place of the mesh's backend: all experts here, or half of a
layer's work here while shards compute the other half (what a shard inside the engine's process
would do). The mesh still gives the view that the engine's layers are checked with.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from actors.dispatch.backend import ExpertBackend
from actors.experts.families import read_expert_spec
from actors.kernels.choose import choose_kernel


class InProcessExperts:
    """`ExpertBackend` with the product's own kernel. others: computes what is not done here."""

    def __init__(self, model: Path, others: ExpertBackend | None) -> None:
        spec = read_expert_spec(model)
        self._kernel = choose_kernel(spec, torch.device("cpu"))
        for layer in spec.layers:
            self._kernel.load(layer, list(range(spec.num_experts)))
        self._num_experts, self._others = spec.num_experts, others

    def send(
        self,
        layer: int,
        rows: torch.Tensor,
        topk_weights: torch.Tensor,
        topk_ids: torch.Tensor,
        sample: int = 0,
    ) -> tuple[Any, torch.Tensor]:
        ids = topk_ids.to(torch.int32)
        call = None
        if self._others is not None:
            elsewhere = half_of(ids, self._num_experts)
            call = self._others.send(
                layer,
                rows,
                topk_weights,
                torch.where(elsewhere, ids, torch.tensor(-1).int()),
                sample,
            )
            ids = torch.where(elsewhere, -1, ids)
        here = (ids.flatten() >= 0).nonzero().flatten()
        if not len(here):
            return call, torch.zeros(rows.shape)
        index = (here // ids.shape[1]).to(torch.int32)
        weights = topk_weights.float().flatten()[here]
        return call, self._kernel.compute(layer, rows, index, ids.flatten()[here], weights)

    def wait(self, call: tuple[Any, torch.Tensor]) -> torch.Tensor:
        away, sums = call
        if away is not None:
            assert self._others is not None
            sums += self._others.wait(away)
        return sums.bfloat16()

    def close(self) -> None:
        if self._others is not None:
            self._others.close()


def half_of(ids: torch.Tensor, num_experts: int) -> torch.Tensor:
    """Mask of [T, K]: whole experts, every second in the order of their rows, so that both halves
    have about as many rows and distinct experts."""
    counts = np.bincount(ids.flatten().numpy(), minlength=num_experts)
    chosen = np.zeros(num_experts, bool)
    chosen[np.argsort(-counts, kind="stable")[1::2]] = True
    return torch.from_numpy(chosen)[ids.long()]
