"""MXFP4 experts on vLLM's CPU kernel (`fused_experts_cpu`); weights stay 4-bit in memory.

Exact clamped SwiGLU. The kernel has two activations: silu(gate) * up, which ignores a limit, and
gpt-oss's g * sigmoid(alpha * g) * (u + 1) with g = min(gate, limit), u = clamp(up, -limit, limit).
DeepSeek-V4 wants silu(g) * u: the second without the "+ 1". Scale gate, up and limit by s = 2^32
and alpha by 1/s, and the kernel computes

    s * g * sigmoid(g) * (s * u + 1)  =  s^2 * silu(g) * (u + 2^-32),

so routing weights divided by s^2 give the exact result: every factor is a power of two, hence
without rounding, and the 2^-32 added to `up` is far below the bf16 rounding of `up` itself. The
factor s goes into the e8m0 scale bytes of w13 at load (+32), so a call costs what the plain one
costs, whether or not the clamp binds.

Rounding: GEMMs accumulate in fp32; gate and up are rounded to bf16, their product is computed in
fp32 and rounded to bf16, the output is rounded to bf16 before and after the routing weight.
"""

import torch

from actors.experts.checkpoint import ExpertTensors
from actors.experts.refusal import ModelRefused
from actors.experts.spec import Activation

MXFP4_METHOD = 4  # vLLM's CPUQuantMethod.MXFP4

SCALE_BITS = 32  # s = 2 ** SCALE_BITS, see above
MAX_SCALE_BYTE = 254 - SCALE_BITS  # e8m0 byte 255 is NaN


class VllmCpuMxfp4:
    """See `ExpertOperator`."""

    device = torch.device("cpu")

    def __init__(self, activation: Activation) -> None:
        self._limit = activation.limit

    def pack(self, expert: ExpertTensors) -> ExpertTensors:
        assert expert.w13_scale is not None
        assert expert.w2_scale is not None
        w13, w13_scale = expert.w13, expert.w13_scale
        if self._limit is not None:
            if int(w13_scale.max()) > MAX_SCALE_BYTE:
                raise ModelRefused("an expert has an MXFP4 scale above 2^95: broken checkpoint")
            w13, w13_scale = interleave(w13), interleave(w13_scale) + SCALE_BITS
        ops = torch.ops._C
        return ExpertTensors(
            w13=ops.convert_weight_packed(w13.unsqueeze(0).contiguous()).squeeze(0),
            w2=ops.convert_weight_packed(expert.w2.unsqueeze(0).contiguous()).squeeze(0),
            w13_scale=ops.convert_scale_packed(w13_scale.unsqueeze(0).contiguous()).squeeze(0),
            w2_scale=ops.convert_scale_packed(expert.w2_scale.unsqueeze(0).contiguous()).squeeze(0),
        )

    def run(
        self, held: ExpertTensors, rows: torch.Tensor, slots: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        alpha, limit = None, None
        if self._limit is not None:
            alpha, limit = 2.0**-SCALE_BITS, self._limit * 2.0**SCALE_BITS
            weights = weights * 2.0 ** (-2 * SCALE_BITS)
        outputs = torch.empty_like(rows)
        torch.ops._C.fused_experts_cpu(
            outputs,
            rows,
            held.w13,
            held.w2,
            weights.unsqueeze(1),
            slots.unsqueeze(1),
            MXFP4_METHOD,
            held.w13_scale,
            held.w2_scale,
            None,  # w1_zero
            None,  # w2_zero
            None,  # a1_scale
            None,  # block_size
            None,  # w1_bias
            None,  # w2_bias
            alpha,
            limit,
            True,  # is_vnni
        )
        return outputs

    def describe(self) -> str:
        clamp = "" if self._limit is None else f", exact clamp at {self._limit:g}"
        return f"mxfp4 experts on vLLM's CPU kernel{clamp}"


def interleave(tensor: torch.Tensor) -> torch.Tensor:
    """Rows [gate; up] of dimension 0 -> gate and up rows alternating."""
    gate, up = tensor.chunk(2)
    return torch.stack([gate, up], 1).flatten(0, 1)
