"""vLLM's MXFP4 experts, wrapped, against the reference where activations pass `swiglu_limit`."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from actors.deepseek_v4_cpu.clamped_experts import (
    clamps_silu,
    prepare_clamped,
    run_clamped,
)
from actors.experts.formats.mxfp4 import MXFP4
from actors.experts.spec import Activation
from actors.kernels.gated import gated_product
from actors.kernels.native_ops import detect_cpu_features

pytestmark = pytest.mark.skipif(
    not detect_cpu_features().avx512_bf16,
    reason="vLLM's MXFP4 kernel needs a CPU with AVX512-BF16",
)
EXPERTS, HIDDEN, INNER, LIMIT = 4, 64, 64, 2.0


def codes(*shape: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


def reference(
    rows: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor, tensors: tuple[torch.Tensor, ...]
) -> torch.Tensor:
    w13, w2, s13, s2 = tensors
    total = torch.zeros(rows.shape)
    for t, k in torch.cartesian_prod(torch.arange(ids.shape[0]), torch.arange(ids.shape[1])):
        e = int(ids[t, k])
        gate_up = rows[t].float() @ MXFP4.decode(w13[e], s13[e], torch.float32).T
        inner = gated_product(gate_up[None], Activation(limit=LIMIT))[0]
        total[t] += weights[t, k] * (inner @ MXFP4.decode(w2[e], s2[e], torch.float32).T)
    return total


def both(
    wanted: Callable[[], bool], given_limit: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """(wrapped vLLM, fp32 reference with the clamp)."""
    from vllm._custom_ops import fused_experts_cpu
    from vllm.model_executor.layers.fused_moe.experts.cpu_moe import (
        prepare_mxfp4_moe_layer_for_cpu,
    )

    tensors = (
        codes(EXPERTS, 2 * INNER, HIDDEN // 2, seed=1),
        codes(EXPERTS, HIDDEN, INNER // 2, seed=2),
        torch.full((EXPERTS, 2 * INNER, HIDDEN // 32), 124, dtype=torch.uint8),
        torch.full((EXPERTS, HIDDEN, INNER // 32), 124, dtype=torch.uint8),
    )
    generator = torch.Generator().manual_seed(3)
    rows = torch.randn(9, HIDDEN, generator=generator).to(torch.bfloat16)
    ids = torch.stack([torch.randperm(EXPERTS, generator=generator)[:2] for _ in range(9)]).int()
    weights = torch.rand(9, 2, generator=generator)
    w13, w2, s13, s2 = prepare_clamped(prepare_mxfp4_moe_layer_for_cpu, wanted)(*tensors)
    out = torch.empty_like(rows)
    run: Any = run_clamped(fused_experts_cpu)
    run(
        out, rows, w13, w2, weights, ids, 4, s13, s2,
        None, None, None, None, None, None, given_limit, True,
    )  # fmt: skip
    return out.float(), reference(rows, weights, ids, tensors)


def relative_error(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((got - wanted).norm() / wanted.norm())


def test_clamp_is_applied() -> None:
    assert relative_error(*both(lambda: True, LIMIT)) < 0.01


def test_the_clamp_matters_in_this_test() -> None:
    """Stock vLLM on the same input: far from the reference."""
    assert relative_error(*both(lambda: False, None)) > 0.2


def test_only_models_that_clamp_are_changed() -> None:
    assert clamps_silu(SimpleNamespace(model_type="deepseek_v4", swiglu_limit=10.0))
    assert not clamps_silu(SimpleNamespace(model_type="deepseek_v4", swiglu_limit=None))
    assert not clamps_silu(SimpleNamespace(model_type="gpt_oss", swiglu_limit=7.0))
