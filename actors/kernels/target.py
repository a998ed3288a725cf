"""What a kernel would run on: a torch device, and what was found out about it."""

from dataclasses import dataclass
from enum import Enum

import torch

from actors.kernels.accelerator import AcceleratorFeatures, detect_accelerator_features
from actors.kernels.native_ops import CpuFeatures, detect_cpu_features, load_cpu_ops

IS_FASTER = "is faster without AMX"
"""End of a reason that holds only as long as no kernel is asked for by name."""


class DeviceKind(Enum):
    """Kinds of device that have kernels of their own."""

    CPU = "cpu"
    NVIDIA = "nvidia"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Target:
    """features: of this CPU or of `device`, whichever `device` is."""

    device: torch.device
    features: CpuFeatures | AcceleratorFeatures

    @property
    def kind(self) -> DeviceKind:
        if isinstance(self.features, CpuFeatures):
            return DeviceKind.CPU
        nvidia = self.features.capability is not None
        return DeviceKind.NVIDIA if nvidia else DeviceKind.OTHER

    @property
    def name(self) -> str:
        """What the driver calls it."""
        return "CPU" if isinstance(self.features, CpuFeatures) else self.features.name

    @property
    def cpu(self) -> CpuFeatures:
        assert isinstance(self.features, CpuFeatures)
        return self.features

    @property
    def nvidia(self) -> AcceleratorFeatures:
        assert isinstance(self.features, AcceleratorFeatures)
        return self.features

    @property
    def capability(self) -> tuple[int, int]:
        """CUDA compute capability of an NVIDIA device."""
        assert self.nvidia.capability is not None
        return self.nvidia.capability

    @property
    def cpu_problem(self) -> str | None:
        """Why vLLM's CPU operators cannot be used; None where they can."""
        return load_cpu_ops(self.cpu)


def find_target(
    device: torch.device, features: CpuFeatures | AcceleratorFeatures | None = None
) -> Target:
    """features: found out if not given."""
    if features is not None:
        return Target(device, features)
    if device.type == "cpu":
        return Target(device, detect_cpu_features())
    return Target(device, detect_accelerator_features(device))
