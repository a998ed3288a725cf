"""Which kernel computes a model's experts on a device: decided here and nowhere else.

For each kind of device `KERNELS` lists entries, best first. An entry is a module with an
`ExpertOperator` and two functions: `why_not(spec, target)` says why it does not compute this model
exactly on this device, or that another one is faster; `build` makes the operator. The first entry
without a reason is taken. A vendor's kernel is one more module and one line in `KERNELS`.

Accelerators other than NVIDIA's (npu, mlu, musa, and those that call themselves cuda) get plain
torch today: it asks for nothing but matrix products and copies, which every torch device has, while
grouped GEMMs differ by vendor in name, layout and rounding, and none has been tried.
"""

import logging
from dataclasses import dataclass
from typing import Protocol

import torch

from actors.experts.checkpoint import ExpertReader
from actors.experts.spec import ExpertSpec
from actors.kernels import (
    bf16_at_load,
    torch_grouped,
    torch_portable,
    vllm_cpu_bf16,
    vllm_cpu_fp8_clamped,
    vllm_cpu_fused,
    vllm_cuda_fused,
)
from actors.kernels.accelerator import AcceleratorFeatures
from actors.kernels.base import ExpertOperator
from actors.kernels.native_ops import CpuFeatures
from actors.kernels.slot_kernel import SlotKernel
from actors.kernels.target import DeviceKind, Target, find_target

logger = logging.getLogger(__name__)


class KernelEntry(Protocol):
    """One kernel to choose from; a module.

    NAME: for people. IS_FALLBACK: taking it is worth a warning that says why nothing better was.
    """

    NAME: str
    IS_FALLBACK: bool

    def why_not(self, spec: ExpertSpec, target: Target, /) -> str | None:
        """Why this kernel is not to compute `spec` on `target`, in one phrase; None: it may."""
        ...

    def build(self, spec: ExpertSpec, target: Target, /) -> ExpertOperator:
        """The operator, where `why_not` is None.

        Raises:
            ImportError: what the kernel is made of cannot be imported after all.
        """
        ...


KERNELS: dict[DeviceKind, tuple[KernelEntry, ...]] = {
    DeviceKind.CPU: (
        vllm_cpu_bf16,
        vllm_cpu_fused,
        vllm_cpu_fp8_clamped,
        bf16_at_load,
        torch_portable,
    ),
    DeviceKind.NVIDIA: (vllm_cuda_fused, torch_grouped, torch_portable),
    DeviceKind.OTHER: (torch_portable,),
}
"""Best first; the last of each computes everything."""


@dataclass(frozen=True, slots=True)
class Choice:
    """operator: what computes; entry: where it comes from; reasons: why not those before it."""

    operator: ExpertOperator
    entry: KernelEntry
    reasons: tuple[str, ...]


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
    target = find_target(device, features)
    choice = choose(spec, target)
    if choice.entry.IS_FALLBACK:
        why = "; ".join(choice.reasons) or "there is no kernel for this vendor's devices yet"
        logger.warning("%s: experts on %s: %s", target.name, choice.entry.NAME, why)
    return choice.operator


def choose(spec: ExpertSpec, target: Target) -> Choice:
    """The first entry of `KERNELS` that computes `spec` on `target`."""
    reasons: list[str] = []
    for entry in KERNELS[target.kind]:
        reason = entry.why_not(spec, target)
        if reason is None:
            try:
                return Choice(entry.build(spec, target), entry, tuple(reasons))
            except ImportError as error:
                reason = f"the installed vLLM cannot be used: {error}"
        if reason not in reasons:
            reasons.append(reason)
    raise AssertionError(f"nothing computes {spec.architecture}: {reasons}")
