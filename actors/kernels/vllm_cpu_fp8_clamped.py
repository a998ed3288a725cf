"""FP8 experts with a clamped SwiGLU, exactly, on vLLM's FP8 GEMM (`fp8_scaled_mm_cpu`).

The fused kernel clamps only where gate and up rows alternate, which block scales rule out (see
`vllm_cpu_fused`). Gate and up are therefore computed expert by expert, on the same packed FP8
weights, and clamped in fp32 between the two GEMMs. Measured against the fused kernel without a
clamp (32 experts, one core): at hidden 2048, intermediate 768 within 15 % of its time from 16 to
256 assignments; at hidden 256 4 times its time, about 18 microseconds for each expert used.

Rounding: as the fused kernel, but the routing weight is applied in fp32.
"""

import torch

from actors.experts.checkpoint import ExpertTensors
from actors.experts.formats.fp8_block128 import FP8_BLOCK128, Fp8Block128
from actors.experts.spec import ExpertSpec, GateActivation
from actors.kernels.base import ExpertOperator
from actors.kernels.fp8_blocks import kernel_block_rows, kernel_scales
from actors.kernels.grouped import run_grouped
from actors.kernels.packing import pack_rows
from actors.kernels.target import Target
from actors.kernels.vllm_cpu_fused import ROW_BLOCK

NAME = "vLLM's FP8 GEMM"
IS_FALLBACK = False


def why_not(spec: ExpertSpec, target: Target) -> str | None:
    if (problem := target.cpu_problem) is not None:
        return problem
    if not target.cpu.avx512_bf16:
        return f"{NAME} needs AVX512-BF16"
    return None if supports(spec) else f"{NAME} is for clamped FP8"


def build(spec: ExpertSpec, _target: Target) -> ExpertOperator:
    return VllmCpuFp8Clamped(spec)


def supports(spec: ExpertSpec) -> bool:
    """Whether this kernel computes `spec` exactly."""
    return (
        isinstance(spec.weight_format, Fp8Block128)
        and spec.activation.kind is GateActivation.SILU
        and not spec.has_bias
        and spec.hidden_size % ROW_BLOCK == 0
        and spec.intermediate_size % ROW_BLOCK == 0
    )


class VllmCpuFp8Clamped:
    """See `ExpertOperator`. Only for specs that `supports`."""

    device = torch.device("cpu")
    weight_format = FP8_BLOCK128

    def __init__(self, spec: ExpertSpec) -> None:
        self._activation = spec.activation
        self._block_size = [kernel_block_rows(spec.intermediate_size), 128]

    def pack(self, expert: ExpertTensors) -> ExpertTensors:
        packed = kernel_scales(expert).map(torch.empty_like)
        self.pack_into(expert, packed)
        return packed

    def pack_into(self, expert: ExpertTensors, slot: ExpertTensors) -> None:
        """See `PacksInPlace`."""
        expert = kernel_scales(expert)
        pack_rows(expert.w13, slot.w13)
        pack_rows(expert.w2, slot.w2)
        for scale, target in ((expert.w13_scale, slot.w13_scale), (expert.w2_scale, slot.w2_scale)):
            assert scale is not None
            assert target is not None
            target.copy_(scale)

    def run(
        self, held: ExpertTensors, rows: torch.Tensor, slots: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        assert held.w13_scale is not None
        assert held.w2_scale is not None
        w13_scale, w2_scale = held.w13_scale, held.w2_scale
        return run_grouped(
            rows,
            slots,
            weights,
            gate_up=lambda slot, x: self._linear(x, held.w13[slot], w13_scale[slot]),
            down=lambda slot, x: self._linear(x, held.w2[slot], w2_scale[slot]),
            activation=self._activation,
        )

    def _linear(self, x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = torch.ops._C.fp8_scaled_mm_cpu(
            x, weight, scale, self._block_size, None, torch.bfloat16, True
        )
        return output

    def describe(self) -> str:
        limit = self._activation.limit
        return f"fp8 experts on vLLM's CPU GEMM, one by one, exact clamp at {limit:g}"
