"""Make vLLM's own MXFP4 experts on CPU apply DeepSeek-V4's `swiglu_limit`.

vLLM hands the limit to its CPU kernel, which ignores it unless gpt-oss's `alpha` comes with it, so
a monolithic engine on a CPU answers differently from the reference wherever an activation reaches
the limit. The remedy is the one of our shards (`actors.kernels.vllm_cpu_fused` derives it):
gpt-oss's activation with gate and up rows alternating, scaled so that its "+ 1" vanishes. Here it
goes around the two functions vLLM prepares and runs these experts with.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch

from actors.experts.formats.mxfp4 import MXFP4
from actors.kernels.packing import interleave
from actors.kernels.vllm_cpu_fused import MAX_EXPONENT, METHODS, SCALE_BITS

SCALE = 2.0**SCALE_BITS
ALPHA, LIMIT = 14, 15
"""Positions of these arguments of `fused_experts_cpu`."""
ROUTING_WEIGHTS, METHOD = 4, 6
PROBE = 64
"""Hidden and inner size of the one expert that shows whether the limit is ignored."""


def clamps_silu(hf_config: Any) -> bool:
    """Whether the model's experts compute silu(min(gate, limit)) * clamp(up)."""
    limit = getattr(hf_config, "swiglu_limit", None)
    return getattr(hf_config, "model_type", "") == "deepseek_v4" and limit is not None


def clamp_experts() -> bool:
    """Wrap vLLM's preparation and kernel call if they ignore the limit; True if it did."""
    from vllm.model_executor.layers.fused_moe.experts import cpu_moe

    module: Any = cpu_moe
    if not hasattr(torch.ops._C, "fused_experts_cpu") or not torch.cpu._is_avx512_bf16_supported():
        return False
    if not ignores_limit(module):
        return False
    module.prepare_mxfp4_moe_layer_for_cpu = prepare_clamped(module.prepare_mxfp4_moe_layer_for_cpu)
    module.fused_experts_cpu = run_clamped(module.fused_experts_cpu)
    return True


def ignores_limit(module: Any) -> bool:
    """Whether vLLM's call gives the same with and without a limit far below the activations."""
    rows, weights = torch.full((1, PROBE), 64.0, dtype=torch.bfloat16), torch.ones(1, 1)
    w13 = torch.full((1, 2 * PROBE, PROBE // 2), 0x22, dtype=torch.uint8)  # every value is 1
    w2 = torch.full((1, PROBE, PROBE // 2), 0x22, dtype=torch.uint8)
    one = torch.full((1, 2 * PROBE, PROBE // 32), 127, dtype=torch.uint8)  # 2 ** 0
    pack, pack_scale = torch.ops._C.convert_weight_packed, torch.ops._C.convert_scale_packed
    held = pack(w13), pack(w2)
    scales = pack_scale(one), pack_scale(one[:, :PROBE].contiguous())
    method = METHODS[MXFP4.name]
    results = []
    for limit in (None, 1.0):
        out = torch.empty_like(rows)
        ids = torch.zeros(1, 1, dtype=torch.int32)
        module.fused_experts_cpu(
            out, rows, *held, weights, ids, method, *scales,
            None, None, None, None, None, None, limit, True,
        )  # fmt: skip
        results.append(out)
    return torch.equal(*results)


def current_model_clamps() -> bool:
    """`clamps_silu` of the model that vLLM loads now."""
    from vllm.config import get_current_vllm_config

    return clamps_silu(get_current_vllm_config().model_config.hf_config)


def prepare_clamped(
    prepare: Callable[..., Any], wanted: Callable[[], bool] = current_model_clamps
) -> Callable[..., Any]:
    """w13 [E, 2I, H / 2] and its scales [E, 2I, H / 32]: rows alternate, values times SCALE."""

    @wraps(prepare)
    def prepared(
        w13: torch.Tensor, w2: torch.Tensor, w13_scale: torch.Tensor, w2_scale: torch.Tensor
    ) -> Any:
        if wanted():
            if int(w13_scale.max()) > MAX_EXPONENT:
                raise ValueError("an expert has MXFP4 scales above 2^87: broken checkpoint")
            w13 = torch.stack([interleave(expert) for expert in w13])
            w13_scale = torch.stack([interleave(scale) for scale in w13_scale]) + SCALE_BITS
        return prepare(w13, w2, w13_scale, w2_scale)

    return prepared


def run_clamped(run: Callable[..., Any]) -> Callable[..., Any]:
    """The kernel with the arguments that fit what `prepare_clamped` made of the weights."""

    @wraps(run)
    def clamped(*arguments: Any) -> Any:
        given = list(arguments)
        if (
            int(given[METHOD]) == METHODS[MXFP4.name]
            and given[ALPHA] is None
            and given[LIMIT] is not None
        ):
            given[ROUTING_WEIGHTS] = given[ROUTING_WEIGHTS] * SCALE**-2
            given[ALPHA], given[LIMIT] = 1 / SCALE, given[LIMIT] * SCALE
        return run(*given)

    return clamped
