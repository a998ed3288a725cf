"""Which kernel computes a model's experts on a device: decided here and nowhere else.

For each kind of device `KERNELS` lists entries, best first. An entry is a module with an
`ExpertOperator` and two functions: `why_not(spec, target)` says why it does not compute this model
exactly on this device, or that another one is faster; `build` makes the operator. The first entry
without a reason is taken. A vendor's kernel is one more module and one line in `KERNELS`.

A model that only vLLM reads (`ExpertSpec.catalog`) gets kernels of ours where its experts are plain
bf16 ones, read by vLLM's loader one by one, and vLLM's own layers otherwise.

Accelerators other than NVIDIA's (npu, mlu, musa, and those that call themselves cuda) get plain
torch today: it asks for nothing but matrix products and copies, which every torch device has, while
grouped GEMMs differ by vendor in name, layout and rounding, and none has been tried. Where a vendor
has a platform plugin for vLLM, its kernels run in vLLM's own layers.
"""

import functools
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol

import torch

from actors.experts.checkpoint import ExpertReader, ExpertTensors
from actors.experts.formats.vllm_own import VllmOwn
from actors.experts.read_ahead import ReadInTurn, one_by_one, read_ahead
from actors.experts.refusal import ModelRefused
from actors.experts.spec import ExpertSpec
from actors.kernels import (
    bf16_at_load,
    torch_grouped,
    torch_portable,
    vllm_cpu_bf16,
    vllm_cpu_fp8_clamped,
    vllm_cpu_fused,
    vllm_cuda_fused,
    vllm_layers,
)
from actors.kernels.accelerator import AcceleratorFeatures
from actors.kernels.base import ExpertOperator
from actors.kernels.native_ops import CpuFeatures
from actors.kernels.slot_kernel import SlotKernel
from actors.kernels.target import IS_FASTER, DeviceKind, Target, find_target

logger = logging.getLogger(__name__)


class KernelEntry(Protocol):
    """One kernel to choose from; a module.

    NAME: for people. IS_FALLBACK: taking it is worth a warning that says why nothing better was.
    It has `build(spec, target)`, which gives the `ExpertOperator` where `why_not` is None and
    raises ImportError where what it is made of cannot be imported after all; or, where experts are
    not packed one by one, `build_kernel(spec, target)`, which gives the whole kernel.
    """

    NAME: str
    IS_FALLBACK: bool

    def why_not(self, spec: ExpertSpec, target: Target, /) -> str | None:
        """Why this kernel is not to compute `spec` on `target`, in one phrase; None: it may."""
        ...


KERNELS: dict[DeviceKind, tuple[KernelEntry, ...]] = {
    DeviceKind.CPU: (
        vllm_cpu_bf16,
        vllm_cpu_fused,
        vllm_cpu_fp8_clamped,
        bf16_at_load,
        vllm_layers,
        torch_portable,
    ),
    DeviceKind.NVIDIA: (vllm_cuda_fused, torch_grouped, vllm_layers, torch_portable),
    DeviceKind.OTHER: (vllm_layers, torch_portable),
}
"""Best first; the last of each computes everything that our formats read."""


def key_of(entry: KernelEntry) -> str:
    """What `kernel` of a pool calls it: the name of its module."""
    return str(entry.__name__).rpartition(".")[2]  # type: ignore[attr-defined]


KERNEL_KEYS = tuple(dict.fromkeys(key_of(e) for entries in KERNELS.values() for e in entries))


@dataclass(frozen=True, slots=True)
class Choice:
    """entry: what computes; reasons: why not those before it."""

    entry: KernelEntry
    reasons: tuple[str, ...]


def choose_kernel(
    spec: ExpertSpec,
    device: torch.device,
    features: CpuFeatures | AcceleratorFeatures | None = None,
    kernel: str | None = None,
) -> SlotKernel:
    """A kernel for `spec` on `device`, holding nothing yet.

    features: of this CPU or of `device`, found out if not given. kernel: the one to take, by its
    key; the best if not given. The choice and what it costs is logged; `describe()` repeats it.

    Raises:
        ModelRefused: nothing computes this model here, or the given kernel does not.
    """
    built = build(spec, device, features, kernel)
    if not isinstance(built, SlotKernel):
        built = SlotKernel(spec, built, read_in_turn=_reads_of(spec))
    logger.info("%s: %s", spec.architecture, built.describe())
    return built


def choose_operator(
    spec: ExpertSpec,
    device: torch.device,
    features: CpuFeatures | AcceleratorFeatures | None = None,
) -> ExpertOperator:
    """What the kernel of `choose_kernel` computes with."""
    built = build(spec, device, features)
    return built.operator if isinstance(built, SlotKernel) else built


def build(
    spec: ExpertSpec,
    device: torch.device,
    features: CpuFeatures | AcceleratorFeatures | None = None,
    kernel: str | None = None,
) -> SlotKernel | ExpertOperator:
    """What the chosen entry builds; the next best where one cannot be imported after all."""
    target = find_target(device, features)
    failed: dict[str, str] = {}
    while True:
        choice = choose(spec, target, kernel, failed)
        try:
            built = _build(choice.entry, spec, target)
        except ImportError as error:
            failed[key_of(choice.entry)] = f"the installed vLLM cannot be used: {error}"
            continue
        except ModelRefused as error:  # by vLLM, once it was asked
            failed[key_of(choice.entry)] = str(error)
            continue
        if choice.entry.IS_FALLBACK and not kernel:
            why = "; ".join(choice.reasons)
            logger.warning("%s: experts on %s: %s", target.name, choice.entry.NAME, why)
        return built


def _build(entry: Any, spec: ExpertSpec, target: Target) -> SlotKernel | ExpertOperator:
    make = getattr(entry, "build_kernel", None) or entry.build
    built: SlotKernel | ExpertOperator = make(spec, target)
    return built


def _reads_of(spec: ExpertSpec) -> ReadInTurn:
    if spec.catalog is None:
        return functools.partial(read_ahead, ExpertReader(spec))
    return one_by_one(reader_of(spec))


def reader_of(spec: ExpertSpec) -> Callable[[int, int], ExpertTensors]:
    """Reads the tensors of (layer, expert): by our layouts, or by vLLM's loader."""
    if spec.catalog is None:
        return ExpertReader(spec).read
    from actors.kernels.vllm_layer_store import LayerStore

    return LayerStore(spec.model_path, spec.catalog, torch.device("cpu")).read_expert


def choose(
    spec: ExpertSpec,
    target: Target,
    kernel: str | None = None,
    failed: Mapping[str, str] = MappingProxyType({}),
) -> Choice:
    """The first entry of `KERNELS` that computes `spec` on `target`; nothing is built.

    kernel: key of the only one to ask. failed: keys of entries that are out, and why.

    Raises:
        ModelRefused: there is none.
    """
    entries = [entry for entry in KERNELS[target.kind] if kernel in (None, key_of(entry))]
    if not entries:
        known = ", ".join(map(key_of, KERNELS[target.kind]))
        raise ModelRefused(f"there is no kernel {kernel} for {target.name}; there are {known}")
    reasons: list[str] = []
    for entry in entries:
        reason = failed.get(key_of(entry)) or _why_not(entry, spec, target)
        if reason is None or (kernel and reason.endswith(IS_FASTER)):
            return Choice(entry, tuple(reasons))
        if reason not in reasons:
            reasons.append(reason)
    by = f"kernel {kernel}" if kernel else "no kernel"
    raise ModelRefused(f"{by} computes {spec.architecture} on {target.name}: {'; '.join(reasons)}")


def _why_not(entry: KernelEntry, spec: ExpertSpec, target: Target) -> str | None:
    if isinstance(spec.weight_format, VllmOwn) and entry is not vllm_layers:
        return f"only vLLM's own layer computes {spec.weight_format.method}"
    return entry.why_not(spec, target)
