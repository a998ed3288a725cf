"""bf16, FP8 and MXFP4 experts on vLLM's fused CPU kernel (`fused_experts_cpu`), needs AVX512-BF16.

Weights stay in their native format in memory. Exact clamped SwiGLU (DeepSeek-V4's
`swiglu_limit`): the kernel has two activations, silu(gate) * up, which ignores a limit, and
gpt-oss's g * sigmoid(alpha * g) * (u + 1) with g = min(gate, limit), u = clamp(up, -limit, limit).
DeepSeek-V4 wants silu(g) * u: the second without the "+ 1". Scale gate, up and limit by s = 2^40
and alpha by 1/s, and the kernel computes

    s * g * sigmoid(g) * (s * u + 1)  =  s^2 * silu(g) * (u + 2^-40),

so routing weights divided by s^2 give the exact result: every factor is a power of two, hence
without rounding, and the 2^-40 added to `up` is below the bf16 rounding of every |up| > 2^-31. The
factor s goes into w13 at load (bf16: its exponents; MXFP4: its e8m0 scale bytes), so a call costs
what the plain one costs, whether or not the clamp binds. Measured on MXFP4, hidden 256,
intermediate 128, one core: relative error against fp32 0.0032 with a tenth of the gates and a
quarter of the ups clamped, against 0.0036 for the plain kernel without a clamp; 289 against 286
microseconds for 256 assignments to 32 experts.

The other way would be to prove that no clamp binds (row norms of w13 times the norm of the input
bound gate and up) and run the plain kernel. On a trained DeepSeek-V4 of hidden 256 that bound was
19 at a limit of 10 where the true maximum was 5.6: it failed for every assignment, though no clamp
did bind, and it loosens with sqrt(H).

That activation reads gate and up rows alternating. FP8 cannot alternate them, as 32 consecutive
rows share a scale here: clamped FP8 is `vllm_cpu_fp8_clamped`.

Rounding: GEMMs accumulate in fp32; gate and up are rounded to bf16 (except bf16 weights with plain
SwiGLU), their product is computed in fp32 and rounded to bf16, the output is rounded to bf16 before
and after the routing weight.
"""

import torch

from actors.experts.checkpoint import ExpertTensors
from actors.experts.formats.bf16 import BF16
from actors.experts.formats.fp8_block128 import FP8_BLOCK128, Fp8Block128
from actors.experts.formats.mxfp4 import MXFP4
from actors.experts.refusal import ModelRefused
from actors.experts.spec import Activation, ExpertSpec, GateActivation
from actors.kernels.base import ExpertOperator
from actors.kernels.fp8_blocks import kernel_block_rows, kernel_scales
from actors.kernels.packing import interleave, pack_rows, pack_scales
from actors.kernels.target import Target

# vLLM's CPUQuantMethod, the kernel's `moe_comp_method`.
METHODS = {BF16.name: 0, FP8_BLOCK128.name: 2, MXFP4.name: 4}

ROW_BLOCK = 32  # the kernel's GEMMs take output and reduction dimensions in multiples of this

SCALE_BITS = 40  # s = 2 ** SCALE_BITS, see above
MAX_EXPONENT = 254 - SCALE_BITS  # a w13 with a biased exponent above it would overflow
MAX_LIMIT = 1024.0  # limit ^ 2 * s ^ 2 and a sum over I must stay far below fp32's 2 ^ 128

NAME = "vLLM's fused CPU kernel"
IS_FALLBACK = False


def why_not(spec: ExpertSpec, target: Target) -> str | None:
    if (problem := target.cpu_problem) is not None:
        return problem
    if not target.cpu.avx512_bf16:
        return f"{NAME} needs AVX512-BF16"
    if not supports(spec):
        return f"{NAME} does not compute {spec.weight_format.name} with {spec.activation} exactly"
    return None


def build(spec: ExpertSpec, _target: Target) -> ExpertOperator:
    return VllmCpuFused(spec)


def supports(spec: ExpertSpec) -> bool:
    """Whether this kernel computes `spec` exactly."""
    if spec.weight_format.name not in METHODS:
        return False
    if spec.hidden_size % ROW_BLOCK or spec.intermediate_size % ROW_BLOCK:
        return False
    alternating = spec.activation != Activation()
    if isinstance(spec.weight_format, Fp8Block128) and (alternating or spec.has_bias):
        return False
    if spec.activation.kind is GateActivation.SWIGLU_OAI:
        return True
    # No model has biases with plain SwiGLU, so that is neither scaled nor tested here.
    return not spec.has_bias and (spec.activation.limit or 0.0) <= MAX_LIMIT


class VllmCpuFused:
    """See `ExpertOperator`. Only for specs that `supports`."""

    device = torch.device("cpu")

    def __init__(self, spec: ExpertSpec) -> None:
        self.weight_format = spec.weight_format
        self._activation = spec.activation
        self._block_size: list[int] | None = None
        if isinstance(self.weight_format, Fp8Block128):
            self._block_size = [kernel_block_rows(spec.intermediate_size), 128]
        self._alpha, self._limit, self._weight_factor = _swiglu_arguments(spec.activation)

    def pack(self, expert: ExpertTensors) -> ExpertTensors:
        expert = self._with_kernel_scales(expert)
        packed = expert.map(_room)
        self._write(expert, packed)
        return packed

    def pack_into(self, expert: ExpertTensors, slot: ExpertTensors) -> None:
        """See `PacksInPlace`."""
        self._write(self._with_kernel_scales(expert), slot)

    def _with_kernel_scales(self, expert: ExpertTensors) -> ExpertTensors:
        return kernel_scales(expert) if isinstance(self.weight_format, Fp8Block128) else expert

    def _write(self, expert: ExpertTensors, slot: ExpertTensors) -> None:
        alternate, scaled = self._alpha is not None, self._weight_factor != 1.0
        w13 = _scale_gate_up(expert) if scaled else expert.w13
        pack_rows(w13, slot.w13, alternate=alternate)
        pack_rows(expert.w2, slot.w2)
        if expert.w13_bias is not None:
            bias = interleave(expert.w13_bias) if alternate else expert.w13_bias
            _copy(bias, slot.w13_bias)
            _copy(expert.w2_bias, slot.w2_bias)
        if self.weight_format == MXFP4:
            add = SCALE_BITS if scaled else 0
            _pack_scale(expert.w13_scale, slot.w13_scale, alternate=alternate, add=add)
            _pack_scale(expert.w2_scale, slot.w2_scale)
        elif expert.w13_scale is not None:
            _copy(expert.w13_scale, slot.w13_scale)
            _copy(expert.w2_scale, slot.w2_scale)

    def run(
        self, held: ExpertTensors, rows: torch.Tensor, slots: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        outputs = torch.empty_like(rows)
        torch.ops._C.fused_experts_cpu(
            outputs,
            rows,
            held.w13,
            held.w2,
            (weights * self._weight_factor).unsqueeze(1),
            slots.unsqueeze(1),
            METHODS[self.weight_format.name],
            held.w13_scale,
            held.w2_scale,
            None,  # w1_zero
            None,  # w2_zero
            None,  # a1_scale
            self._block_size,
            held.w13_bias,
            held.w2_bias,
            self._alpha,
            self._limit,
            True,  # is_vnni
        )
        return outputs

    def describe(self) -> str:
        limit = self._activation.limit
        clamp = "" if limit is None else f", exact clamp at {limit:g}"
        return f"{self.weight_format.name} experts on vLLM's fused CPU kernel{clamp}"


def _swiglu_arguments(activation: Activation) -> tuple[float | None, float | None, float]:
    """(alpha, limit, factor on routing weights) for the kernel."""
    if activation.kind is GateActivation.SWIGLU_OAI:
        limit = torch.finfo(torch.float32).max if activation.limit is None else activation.limit
        return activation.alpha, limit, 1.0
    if activation.limit is None:
        return None, None, 1.0
    scale = 2.0**SCALE_BITS
    return 1 / scale, activation.limit * scale, scale**-2


def _scale_gate_up(expert: ExpertTensors) -> torch.Tensor:
    """w13 times 2 ** SCALE_BITS, without rounding; where it has scales, they get the factor."""
    if expert.w13_scale is None:
        if float(expert.w13.abs().max()) > 2.0 ** (MAX_EXPONENT - 127):
            raise ModelRefused("an expert has gate or up weights above 2^87: broken checkpoint")
        return expert.w13 * 2.0**SCALE_BITS
    if int(expert.w13_scale.max()) > MAX_EXPONENT:
        raise ModelRefused("an expert has MXFP4 scales above 2^87: broken checkpoint")
    return expert.w13


def _room(tensor: torch.Tensor) -> torch.Tensor:
    """For `tensor` packed; the kernel takes biases in fp32."""
    is_bias = tensor.dim() == 1
    return torch.empty(tensor.shape, dtype=torch.float32 if is_bias else tensor.dtype)


def _copy(tensor: torch.Tensor | None, target: torch.Tensor | None) -> None:
    assert tensor is not None
    assert target is not None
    target.copy_(tensor)


def _pack_scale(
    scale: torch.Tensor | None,
    target: torch.Tensor | None,
    *,
    alternate: bool = False,
    add: int = 0,
) -> None:
    assert scale is not None
    assert target is not None
    pack_scales(scale, target, alternate=alternate, add=add)
