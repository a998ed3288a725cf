"""Muon for matrices, AdamW for everything else.

Muon (Jordan et al., 2024) replaces a matrix's momentum by its nearest semi-orthogonal matrix,
found with five Newton-Schulz steps; DeepSeek-V4 was itself trained with it. Steps are scaled by
``0.2 * sqrt(max(rows, columns))`` so that one learning rate and one weight decay fit both halves
(Moonshot, "Muon is scalable for LLM training", 2025). Expert tensors are batches of matrices.
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from transformers import DeepseekV4Config

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5
RMS_MATCH = 0.2


@dataclass(slots=True)
class MatrixParameter:
    """A parameter and the shape ``(-1, rows, columns)`` under which it is a stack of matrices."""

    parameter: nn.Parameter
    rows: int
    momentum: torch.Tensor

    def stack(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.reshape(-1, self.rows, tensor.shape[-1])


def orthogonalise(stack: torch.Tensor) -> torch.Tensor:
    """Approximately ``U V^T`` of each matrix of ``stack [N, rows, columns]``."""
    a, b, c = NEWTON_SCHULZ
    x = stack.to(torch.bfloat16)
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).float()


class Muon:
    """Muon over stacks of matrices; gradients are consumed (set to None) by ``step``."""

    def __init__(
        self,
        parameters: list[tuple[nn.Parameter, int]],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.1,
    ) -> None:
        """``parameters``: each with the number of rows of one matrix of its stack."""
        self.lr = lr
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.by_shape: dict[tuple[int, int], list[MatrixParameter]] = defaultdict(list)
        for parameter, rows in parameters:
            member = MatrixParameter(parameter, rows, torch.zeros_like(parameter))
            self.by_shape[rows, parameter.shape[-1]].append(member)

    @torch.no_grad()
    def step(self) -> None:
        for (rows, columns), members in self.by_shape.items():
            scale = RMS_MATCH * max(rows, columns) ** 0.5
            for member in members:
                gradient = member.parameter.grad
                assert gradient is not None, "step() without backward()"
                member.momentum.lerp_(gradient, 1 - self.momentum)
                nesterov = gradient.lerp(member.momentum, self.momentum)
                update = orthogonalise(member.stack(nesterov)).reshape_as(member.parameter)
                member.parameter.mul_(1 - self.lr * self.weight_decay)
                member.parameter.add_(update, alpha=-self.lr * scale)
                member.parameter.grad = None


ADAMW_NAMES = ("embed", "lm_head", "mlp.gate.", "_hc.", "hc_head", "position_bias")
"""Parameters whose name contains one of these are AdamW's even when they are matrices."""


def matrix_rows(name: str, parameter: nn.Parameter, config: DeepseekV4Config) -> int | None:
    """Rows of one matrix of the stack that ``parameter`` is for Muon; None: AdamW's parameter.

    Fused matrices are taken apart: an expert's gate and up halves, the query projection's heads,
    the grouped output projection's groups.
    """
    if ".experts.gate_up_proj" in name:
        return config.moe_intermediate_size
    if ".experts.down_proj" in name:
        return config.hidden_size
    if parameter.ndim != 2 or any(part in name for part in ADAMW_NAMES):
        return None
    if name.endswith("self_attn.q_b_proj.weight"):
        return config.head_dim
    if name.endswith("o_a_proj.weight"):
        return config.o_lora_rank
    return parameter.shape[0]


def adamw_groups(
    named: list[tuple[str, nn.Parameter]], lr: float, embedding_lr_ratio: float, weight_decay: float
) -> list[dict[str, object]]:
    """AdamW parameter groups: embeddings learn faster, vectors and mHC are not decayed."""

    def kind(name: str) -> str:
        if "embed" in name:
            return "embedding"
        return "matrix" if "lm_head" in name or "mlp.gate." in name else "vector"

    groups: dict[str, list[nn.Parameter]] = defaultdict(list)
    for name, parameter in named:
        groups[kind(name)].append(parameter)
    settings: dict[str, Callable[[], dict[str, float]]] = {
        "embedding": lambda: {"lr": lr * embedding_lr_ratio, "weight_decay": 0.0},
        "matrix": lambda: {"lr": lr, "weight_decay": weight_decay},
        "vector": lambda: {"lr": lr, "weight_decay": 0.0},
    }
    return [{"params": params, **settings[name]()} for name, params in groups.items()]
