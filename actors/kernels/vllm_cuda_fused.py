"""bf16 and FP8 experts on vLLM's fused Triton kernel (`fused_experts`), for NVIDIA devices.

Sorting by expert, both GEMMs, the activation between them and the routing weight are vLLM's own
code of the installed release, with the tile sizes vLLM ships for the device. The function takes no
limit for SiLU and no MXFP4, and its one SwiGLU-OAI has gpt-oss's constants built in and wants gate
and up rows alternating; what it cannot compute exactly is left to `torch_grouped`.

Rounding: GEMMs accumulate in fp32; gate and up, the activated product and the weighted output are
rounded to bf16. FP8 is multiplied as FP8, so there the rows and the activated products are rounded
to e4m3 too, in groups of 128 columns with an fp32 scale each. That is how DeepSeek-V3 was trained
and how vLLM serves it, and it is coarser than our other FP8 kernels, which keep rows in bf16: about
3 to 7 % of an output's norm (the kernel in Triton's interpreter) against 0.5 %.
"""

from typing import Any

import torch

from actors.experts.checkpoint import ExpertTensors
from actors.experts.formats.bf16 import BF16
from actors.experts.formats.fp8_block128 import FP8_BLOCK128, Fp8Block128
from actors.experts.spec import Activation, ExpertSpec, GateActivation
from actors.kernels.base import ExpertOperator
from actors.kernels.packing import interleave
from actors.kernels.target import Target
from actors.kernels.vllm_cpu_bf16 import BUILT_IN_SWIGLU_OAI

FP8_BLOCK = 128
ROW_BLOCK = 16  # the least reduction and output sizes a tensor core instruction takes

LEAST_CAPABILITY = {BF16.name: (8, 0), FP8_BLOCK128.name: (8, 9)}
"""The least compute capability with bf16 and with FP8 tensor cores."""

NAME = "vLLM's fused CUDA kernel"
IS_FALLBACK = False


def why_not(spec: ExpertSpec, target: Target) -> str | None:
    if not target.nvidia.cuda_vllm:
        return "no CUDA build of vLLM is installed"
    if not supports(spec):
        return "vLLM's kernel does not compute this model's experts exactly"
    if target.capability < LEAST_CAPABILITY[spec.weight_format.name]:
        return f"the device has no {spec.weight_format.name} tensor cores"
    return None


def build(spec: ExpertSpec, target: Target) -> ExpertOperator:
    return VllmCudaFused(spec, target.device)


def supports(spec: ExpertSpec) -> bool:
    """Whether this kernel computes `spec` as described above."""
    sizes = (spec.hidden_size, spec.intermediate_size)
    if isinstance(spec.weight_format, Fp8Block128):
        # Rows are rounded in groups of 128 columns, and up blocks must not begin inside gate's.
        plain = spec.activation == Activation() and not spec.has_bias
        return plain and all(size % FP8_BLOCK == 0 for size in sizes)
    if spec.weight_format != BF16 or any(size % ROW_BLOCK for size in sizes):
        return False
    if spec.activation.kind is GateActivation.SWIGLU_OAI:
        return spec.activation == BUILT_IN_SWIGLU_OAI
    # No model has biases with plain SwiGLU, so that is not tested.
    return spec.activation.limit is None and not spec.has_bias


class VllmCudaFused:
    """See `ExpertOperator`. Only for specs that `supports`.

    Raises:
        ImportError: the installed vLLM cannot be imported or has no Triton kernels.
    """

    def __init__(self, spec: ExpertSpec, device: torch.device) -> None:
        from vllm.model_executor.layers.fused_moe import activation, config, fused_moe
        from vllm.triton_utils import HAS_TRITON

        if not HAS_TRITON:
            raise ImportError("vLLM found no Triton driver for this device")
        self.device = device
        self.weight_format = spec.weight_format
        self._interleaved = spec.activation.kind is GateActivation.SWIGLU_OAI
        kinds = activation.MoEActivation
        self._activation = kinds.SWIGLUOAI if self._interleaved else kinds.SILU
        self._config = config
        self._fused_experts = fused_moe.fused_experts

    def pack(self, expert: ExpertTensors) -> ExpertTensors:
        if self._interleaved:
            bias = expert.w13_bias
            expert = ExpertTensors(
                w13=interleave(expert.w13),
                w2=expert.w2,
                w13_bias=None if bias is None else interleave(bias),
                w2_bias=expert.w2_bias,
            )
        return expert.map(lambda tensor: tensor.to(self.device).contiguous())

    def run(
        self, held: ExpertTensors, rows: torch.Tensor, slots: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        outputs: torch.Tensor = self._fused_experts(
            rows,
            held.w13,
            held.w2,
            weights.unsqueeze(1),
            slots.unsqueeze(1),
            activation=self._activation,
            quant_config=self._quant_config(held),
        )
        return outputs

    def _quant_config(self, held: ExpertTensors) -> Any:
        if self.weight_format == BF16:
            return self._config.biased_moe_quant_config(held.w13_bias, held.w2_bias)
        assert held.w13_scale is not None
        assert held.w2_scale is not None
        return self._config.fp8_w8a8_moe_quant_config(
            held.w13_scale, held.w2_scale, block_shape=[FP8_BLOCK, FP8_BLOCK]
        )

    def describe(self) -> str:
        rounded = ", rows rounded to fp8" if self.weight_format != BF16 else ""
        return f"{self.weight_format.name} experts on vLLM's fused CUDA kernel{rounded}"
