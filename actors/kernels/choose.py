"""Which kernel computes a model's experts on a device: decided here and nowhere else.

On a CPU, in this order: vLLM's fused kernel (AVX512-BF16), its FP8 GEMM for clamped FP8, its
grouped bf16 kernel (from AVX2 on; for bf16 it comes first where there is AMX, as in vLLM), which
takes quantised experts as bf16. Whatever none of them computes exactly gets plain torch.

On an NVIDIA device: vLLM's fused CUDA kernel where a CUDA build of vLLM is installed and computes
the model, then torch's grouped GEMM where the device has one (compute capability 9 and 10), else
plain torch.

Every other accelerator (npu, mlu, musa, and those that call themselves cuda) gets plain torch
today: it asks for nothing but matrix products and copies, which every torch device has, while
grouped GEMMs differ by vendor in name, layout and rounding, and none has been tried. A vendor's
kernel is one more `ExpertOperator`, chosen in `choose_accelerator_kernel`.
"""

import dataclasses
import logging
from enum import Enum

import torch

from actors.experts.checkpoint import ExpertReader
from actors.experts.spec import ExpertSpec, WeightFormat
from actors.kernels.accelerator import AcceleratorFeatures, detect_accelerator_features
from actors.kernels.base import ExpertOperator
from actors.kernels.bf16_at_load import Bf16AtLoad
from actors.kernels.native_ops import CpuFeatures, detect_cpu_features, load_cpu_ops
from actors.kernels.slot_kernel import SlotKernel
from actors.kernels.torch_grouped import TorchGrouped, supports_grouped
from actors.kernels.torch_portable import TorchPortable
from actors.kernels.vllm_cpu_bf16 import VllmCpuBf16, supports_bf16
from actors.kernels.vllm_cpu_fp8_clamped import VllmCpuFp8Clamped, supports_clamped_fp8
from actors.kernels.vllm_cpu_fused import VllmCpuFused, supports_fused
from actors.kernels.vllm_cuda_fused import VllmCudaFused, supports_cuda_fused

logger = logging.getLogger(__name__)

# Compute capabilities (major numbers) for which torch 2.13 has a grouped GEMM of one kernel.
GROUPED_GEMM_MAJORS = (9, 10)

# The least compute capability with bf16 and with FP8 tensor cores.
LEAST_CAPABILITY = {WeightFormat.BF16: (8, 0), WeightFormat.FP8_BLOCK128: (8, 9)}


class AcceleratorKernel(Enum):
    """What computes experts on a device other than the CPU."""

    VLLM_FUSED = "vLLM's fused CUDA kernel"
    TORCH_GROUPED = "torch's grouped GEMM"
    TORCH_PORTABLE = "plain torch"


def choose_kernel(
    spec: ExpertSpec,
    device: torch.device,
    features: CpuFeatures | AcceleratorFeatures | None = None,
) -> SlotKernel:
    """A kernel for `spec` on `device`, holding nothing yet.

    features: of this CPU or of `device`, found out if not given. The choice and what it costs is
    logged; `describe()` repeats it.
    """
    operator = choose_operator(spec, device, features)
    logger.info("%s: %s", spec.architecture, operator.describe())
    return SlotKernel(spec, operator, ExpertReader(spec).read)


def choose_operator(
    spec: ExpertSpec,
    device: torch.device,
    features: CpuFeatures | AcceleratorFeatures | None = None,
) -> ExpertOperator:
    """What the kernel of `choose_kernel` computes with."""
    if device.type == "cpu":
        assert not isinstance(features, AcceleratorFeatures)
        return _cpu_operator(spec, features or detect_cpu_features())
    assert not isinstance(features, CpuFeatures)
    return _accelerator_operator(spec, device, features or detect_accelerator_features(device))


def choose_accelerator_kernel(
    spec: ExpertSpec, features: AcceleratorFeatures
) -> tuple[AcceleratorKernel, str]:
    """(kernel, why not a faster one; "" where it is the first choice)."""
    capability = features.capability
    if capability is None:
        return AcceleratorKernel.TORCH_PORTABLE, "there is no kernel for this vendor's devices yet"
    if not features.cuda_vllm:
        reason = "no CUDA build of vLLM is installed"
    elif not supports_cuda_fused(spec):
        reason = "vLLM's kernel does not compute this model's experts exactly"
    elif capability < LEAST_CAPABILITY[spec.weight_format]:
        reason = f"the device has no {spec.weight_format.value} tensor cores"
    else:
        return AcceleratorKernel.VLLM_FUSED, ""
    if not supports_grouped(spec):
        return AcceleratorKernel.TORCH_PORTABLE, f"{reason}, and torch's grouped GEMM cannot either"
    if capability[0] not in GROUPED_GEMM_MAJORS:
        return AcceleratorKernel.TORCH_PORTABLE, f"{reason}, and torch has no grouped GEMM for it"
    return AcceleratorKernel.TORCH_GROUPED, reason


def _accelerator_operator(
    spec: ExpertSpec, device: torch.device, features: AcceleratorFeatures
) -> ExpertOperator:
    kernel, reason = choose_accelerator_kernel(spec, features)
    if reason:
        logger.warning("%s: experts on %s: %s", features.name, kernel.value, reason)
    match kernel:
        case AcceleratorKernel.VLLM_FUSED:
            try:
                return VllmCudaFused(spec, device)
            except ImportError as error:
                logger.warning("the installed vLLM cannot be used: %s", error)
            without = dataclasses.replace(features, cuda_vllm=False)
            return _accelerator_operator(spec, device, without)
        case AcceleratorKernel.TORCH_GROUPED:
            return TorchGrouped(spec, device)
        case AcceleratorKernel.TORCH_PORTABLE:
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
