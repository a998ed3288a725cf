"""What a device other than the CPU is, as far as the choice of its kernel goes."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True, slots=True)
class AcceleratorFeatures:
    """name: what the driver calls the device; torch's device type where it gives no name.
    capability: CUDA compute capability; None unless it is an NVIDIA device, since other vendors'
        devices (MetaX, Hygon, Kunlunxin, AMD) call themselves "cuda" in torch too and number their
        architectures as they like.
    cuda_vllm: a CUDA build of vLLM and Triton are installed.
    """

    name: str
    capability: tuple[int, int] | None = None
    cuda_vllm: bool = False


def detect_accelerator_features(device: torch.device) -> AcceleratorFeatures:
    """What this process finds; initialises CUDA if `device` is of that type, and imports nothing
    but torch."""
    if device.type != "cuda":
        return AcceleratorFeatures(device.type)
    name = torch.cuda.get_device_properties(device).name
    if torch.version.hip is not None or not name.startswith("NVIDIA"):
        return AcceleratorFeatures(name)
    return AcceleratorFeatures(name, torch.cuda.get_device_capability(device), _has_cuda_vllm())


def _has_cuda_vllm() -> bool:
    """The library vLLM's CUDA platform loads is there; CPU and ROCm builds have others."""
    package = importlib.util.find_spec("vllm")
    if package is None or package.origin is None or importlib.util.find_spec("triton") is None:
        return False
    return any(Path(package.origin).parent.glob("_C_stable_libtorch*so"))
