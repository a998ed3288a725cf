"""Which kernel computes a model's experts on a device: decided here and nowhere else."""

import torch

from actors.experts.refusal import ModelRefused
from actors.experts.spec import ExpertSpec, WeightFormat
from actors.kernels.native_ops import CpuFeatures, detect_cpu_features, load_cpu_ops
from actors.kernels.slot_kernel import ExpertOperator, SlotKernel
from actors.kernels.vllm_cpu_bf16 import VllmCpuBf16
from actors.kernels.vllm_cpu_mxfp4 import VllmCpuMxfp4


def choose_kernel(
    spec: ExpertSpec, device: torch.device, features: CpuFeatures | None = None
) -> SlotKernel:
    """An empty kernel for `spec` on `device`; `features` default to this process's CPU."""
    features = features or detect_cpu_features()
    problem = load_cpu_ops(features)
    if problem is not None or device.type != "cpu":
        raise ModelRefused(f"no expert kernel for device {device}: {problem}")
    operator: ExpertOperator
    if spec.weight_format is WeightFormat.BF16:
        operator = VllmCpuBf16(features)
    else:
        operator = VllmCpuMxfp4(spec.activation)
    return SlotKernel(spec, operator)
