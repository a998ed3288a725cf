"""Which kernel computes a model's experts on a device: decided here and nowhere else.

On a CPU, in this order: vLLM's fused kernel (AVX512-BF16), its FP8 GEMM for clamped FP8, its
grouped bf16 kernel (from AVX2 on; for bf16 it comes first where there is AMX, as in vLLM), which
takes quantised experts as bf16. Whatever none of them computes exactly, and every other device,
gets plain torch.
"""

import dataclasses
import logging

import torch

from actors.experts.checkpoint import ExpertReader
from actors.experts.spec import ExpertSpec, WeightFormat
from actors.kernels.bf16_at_load import Bf16AtLoad
from actors.kernels.native_ops import CpuFeatures, detect_cpu_features, load_cpu_ops
from actors.kernels.slot_kernel import ExpertOperator, SlotKernel
from actors.kernels.torch_portable import TorchPortable
from actors.kernels.vllm_cpu_bf16 import VllmCpuBf16, supports_bf16
from actors.kernels.vllm_cpu_fp8_clamped import VllmCpuFp8Clamped, supports_clamped_fp8
from actors.kernels.vllm_cpu_fused import VllmCpuFused, supports_fused

logger = logging.getLogger(__name__)


def choose_kernel(
    spec: ExpertSpec, device: torch.device, features: CpuFeatures | None = None
) -> SlotKernel:
    """A kernel for `spec` on `device`, holding nothing yet.

    features: of this process's CPU, found out if not given. The choice and what it costs is logged;
    `describe()` repeats it.
    """
    operator = choose_operator(spec, device, features)
    logger.info("%s: %s", spec.architecture, operator.describe())
    return SlotKernel(spec, operator, ExpertReader(spec).read)


def choose_operator(
    spec: ExpertSpec, device: torch.device, features: CpuFeatures | None = None
) -> ExpertOperator:
    """What the kernel of `choose_kernel` computes with."""
    if device.type == "cpu":
        return _cpu_operator(spec, features or detect_cpu_features())
    return TorchPortable(spec, device)


def _cpu_operator(spec: ExpertSpec, features: CpuFeatures) -> ExpertOperator:
    problem = load_cpu_ops(features)
    if problem is not None:
        logger.warning("%s: experts are computed in plain torch, which is slow", problem)
        return TorchPortable(spec, torch.device("cpu"))
    if features.avx512_bf16:
        if _prefers_grouped(spec, features):
            return VllmCpuBf16(spec, features)
        if supports_fused(spec):
            return VllmCpuFused(spec)
        if supports_clamped_fp8(spec):
            return VllmCpuFp8Clamped(spec)
    if supports_bf16(spec):
        return _grouped(spec, features)
    logger.warning("no native kernel computes %s: plain torch does, slowly", spec.activation)
    return TorchPortable(spec, torch.device("cpu"))


def _prefers_grouped(spec: ExpertSpec, features: CpuFeatures) -> bool:
    is_bf16 = spec.weight_format is WeightFormat.BF16
    return is_bf16 and features.amx_tile and supports_bf16(spec)


def _grouped(spec: ExpertSpec, features: CpuFeatures) -> ExpertOperator:
    if spec.weight_format is WeightFormat.BF16:
        return VllmCpuBf16(spec, features)
    as_bf16 = dataclasses.replace(spec, weight_format=WeightFormat.BF16)
    logger.warning(
        "no %s kernel for this model on this CPU: experts become bf16, %.1f times the memory",
        spec.weight_format.value,
        as_bf16.bytes_per_expert / spec.bytes_per_expert,
    )
    return Bf16AtLoad(VllmCpuBf16(as_bf16, features), spec.weight_format)
