"""vLLM's own layers of routed experts: any model, format and kernel that vLLM has on a device.

Imports vLLM (seconds, and some hundred MB in the shard), so it comes after kernels of ours that
compute a model exactly; on a CPU they are also faster. Before plain torch, and for what only vLLM
reads.
"""

from importlib.metadata import entry_points

import torch

from actors.experts.catalog import ExpertCatalog, read_catalog
from actors.experts.spec import ExpertSpec, GateActivation
from actors.kernels.slot_kernel import SlotKernel
from actors.kernels.target import DeviceKind, Target

NAME = "vLLM's own layer"
IS_FALLBACK = False

PLATFORM_PLUGINS = "vllm.platform_plugins"
"""Entry points of vendors' packages."""


def why_not(spec: ExpertSpec, target: Target) -> str | None:
    if (problem := _without_vllm(target)) is not None:
        return problem
    if spec.catalog is not None:
        return spec.catalog.inexact or None
    clamped = spec.activation.kind is GateActivation.SILU and spec.activation.limit is not None
    if clamped and target.kind is DeviceKind.CPU:
        return f"{NAME} ignores swiglu_limit on CPUs"
    return None


def _without_vllm(target: Target) -> str | None:
    """Why there is no vLLM for this device."""
    if target.kind is DeviceKind.CPU:
        return target.cpu_problem
    if target.kind is DeviceKind.NVIDIA:
        return None if target.nvidia.cuda_vllm else "no CUDA build of vLLM is installed"
    plugins = entry_points(group=PLATFORM_PLUGINS)
    return None if plugins else f"no plugin of vLLM for {target.name} is installed"


def build_kernel(spec: ExpertSpec, target: Target) -> SlotKernel:
    """A kernel that holds nothing yet; its first expert is read, to know what one takes.

    Raises:
        ImportError: vLLM cannot be imported.
        ModelRefused: it does not build, load or compute the model on this device.
    """
    from actors.kernels.vllm_layer_operator import VllmLayerOperator
    from actors.kernels.vllm_layer_store import LayerStore

    catalog = catalog_of(spec)
    store = LayerStore(spec.model_path, catalog, target.device)
    store.load(spec.layers[0], [0])
    bytes_per_expert = store.resident_bytes()
    operator = VllmLayerOperator(target.device, spec.weight_format, catalog.method)
    kernel = SlotKernel(spec, operator, store=store, bytes_per_expert=bytes_per_expert)
    one = torch.ones(1)
    index = torch.zeros(1, dtype=torch.int32)
    kernel.compute(spec.layers[0], torch.zeros(1, spec.hidden_size).bfloat16(), index, index, one)
    store.load(spec.layers[0], [])
    return kernel


def catalog_of(spec: ExpertSpec) -> ExpertCatalog:
    return spec.catalog or read_catalog(spec.model_path)
