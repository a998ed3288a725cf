"""bf16 experts on vLLM's grouped CPU kernel (`cpu_fused_moe`), for CPUs with AVX2 at least.

Slower than `vllm_cpu_fused` where both run (AVX512-BF16, one core, 32 experts: 1.5 times its time
at hidden 2048, 1.4-2 times at hidden 256), but it needs no bf16 instructions, and it has an AMX
form. It clamps only as gpt-oss does, with gpt-oss's constants built in.

Rounding: GEMMs accumulate in fp32; gate, up and the activation are computed in fp32 and the product
is rounded to bf16; each assignment's weighted output is rounded to bf16 before the fp32 sum.
"""

import torch

from actors.experts.checkpoint import ExpertTensors
from actors.experts.formats.bf16 import BF16
from actors.experts.spec import Activation, ExpertSpec, GateActivation
from actors.kernels import vllm_cpu_fused
from actors.kernels.base import ExpertOperator
from actors.kernels.native_ops import GROUPED_CPU_KERNEL, CpuFeatures
from actors.kernels.packing import interleave
from actors.kernels.target import IS_FASTER, Target
from actors.kernels.vllm_cpu_fused import ROW_BLOCK

BUILT_IN_SWIGLU_OAI = Activation(GateActivation.SWIGLU_OAI, limit=7.0, alpha=1.702)

NAME = "vLLM's grouped CPU kernel"
IS_FALLBACK = False


def why_not(spec: ExpertSpec, target: Target) -> str | None:
    if (problem := target.cpu_problem) is not None:
        return problem
    if spec.weight_format != BF16:
        return f"{NAME} takes bf16 only"
    if target.cpu.avx512_bf16 and not target.cpu.amx_tile and vllm_cpu_fused.supports(spec):
        return f"{vllm_cpu_fused.NAME} {IS_FASTER}"
    return None if supports(spec) else f"{NAME} does not compute {spec.activation} at these sizes"


def build(spec: ExpertSpec, target: Target) -> ExpertOperator:
    return VllmCpuBf16(spec, target.cpu)


def supports(spec: ExpertSpec) -> bool:
    """Whether this kernel computes `spec` exactly, its weights being bf16."""
    aligned = spec.hidden_size % ROW_BLOCK == 0 and spec.intermediate_size % ROW_BLOCK == 0
    if spec.activation.kind is GateActivation.SWIGLU_OAI:
        return aligned and spec.activation == BUILT_IN_SWIGLU_OAI
    return aligned and spec.activation.limit is None


class VllmCpuBf16:
    """See `ExpertOperator`. Only for specs that `supports`."""

    device = torch.device("cpu")
    weight_format = BF16

    def __init__(self, spec: ExpertSpec, features: CpuFeatures) -> None:
        self._isa = features.isa
        self._interleaved = spec.activation.kind is GateActivation.SWIGLU_OAI
        self._act = "swigluoai" if self._interleaved else "silu"

    def pack(self, expert: ExpertTensors) -> ExpertTensors:
        w13, w13_bias = expert.w13, expert.w13_bias
        if self._interleaved:
            w13 = interleave(w13)
            w13_bias = None if w13_bias is None else interleave(w13_bias)
        return ExpertTensors(
            w13=self._prepack(w13),
            w2=self._prepack(expert.w2),
            w13_bias=w13_bias,
            w2_bias=expert.w2_bias,
        )

    def _prepack(self, weight: torch.Tensor) -> torch.Tensor:
        packed = torch.empty((1, *weight.shape), dtype=weight.dtype)
        torch.ops._C.prepack_moe_weight(weight.unsqueeze(0).contiguous(), packed, self._isa)
        return packed.squeeze(0)

    def run(
        self, held: ExpertTensors, rows: torch.Tensor, slots: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        outputs = torch.empty_like(rows)
        with GROUPED_CPU_KERNEL:
            torch.ops._C.cpu_fused_moe(
                outputs,
                rows,
                held.w13,
                held.w2,
                held.w13_bias,
                held.w2_bias,
                weights.unsqueeze(1),
                slots.unsqueeze(1),
                False,  # skip_weighted
                self._act,
                self._isa,
            )
        return outputs

    def describe(self) -> str:
        return f"bf16 experts on vLLM's grouped CPU kernel ({self._isa})"
