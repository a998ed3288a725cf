"""Layers of vLLM's own with the experts a shard holds, and how they are replaced while it serves.

A method of vLLM packs a layer's weights once, after they were loaded, into whatever form its kernel
takes; few can be told to add an expert. So a layer that is to hold other experts is built beside
the old one, from the checkpoint, and published with a single assignment. That needs one layer's
bytes on top for as long as it lasts, as other kernels do, and reads the layer's experts again,
which lie in the page cache where the memory allows.
"""

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts

from actors.experts.catalog import ExpertCatalog
from actors.experts.checkpoint import ExpertTensors
from actors.experts.refusal import ModelRefused
from actors.kernels.base import ExpertsMissing
from actors.kernels.slots import SlotMap, slot_map
from actors.vllm_layers.reading import CatalogReader
from actors.vllm_layers.skeleton import Skeleton, one_line


@dataclass(frozen=True, slots=True)
class HeldVllmLayer:
    """One layer that is ready to compute."""

    map: SlotMap
    stacked: RoutedExperts
    nbytes: int


class LayerStore:
    """See `Store` of `actors.kernels.slot_kernel`."""

    def __init__(self, model_path: Path, catalog: ExpertCatalog, device: torch.device) -> None:
        self._skeleton = Skeleton(model_path, trust_remote_code=catalog.trust_remote_code)
        self._reader = CatalogReader(model_path, catalog)
        self._names = {layer.layer: layer.name for layer in catalog.layers}
        self._num_experts = catalog.layers[0].experts
        self._device = device
        self._layers: dict[int, HeldVllmLayer] = {}
        self._loading = threading.Lock()

    @property
    def bytes_read(self) -> int:
        """Of the checkpoint, since the start."""
        return self._reader.bytes_read

    def load(self, layer: int, experts: list[int]) -> None:
        """See `ExpertKernel.load`. An empty list frees the layer. If it fails, the layer is as it
        was before."""
        with self._loading:
            old = self._layers.get(layer)
            if not experts:
                self._layers.pop(layer, None)
            elif old is None or old.map.experts != tuple(experts):
                self._layers[layer] = self._build(layer, experts)

    def _build(self, layer: int, experts: list[int]) -> HeldVllmLayer:
        built = self.pack(self.read_layer(layer, experts))
        slots = slot_map(layer, experts, self._num_experts)
        return HeldVllmLayer(slots, built, bytes_of(built))

    def read_layer(self, layer: int, experts: list[int]) -> RoutedExperts:
        """`experts` of a layer as the model's loader leaves them, not yet packed."""
        name = self._names[layer]
        built = self._skeleton.build_layer(name, experts, self._device)
        try:
            self._skeleton.load_into(built, self._reader.read(layer, experts))
        except (ValueError, KeyError, IndexError, TypeError, AssertionError, RuntimeError) as error:
            raise ModelRefused(
                f"vLLM's {self._skeleton.architecture} does not load {len(experts)} experts of "
                f"{name} by themselves: {one_line(error)}"
            ) from error
        return built

    def pack(self, layer: RoutedExperts) -> RoutedExperts:
        """The layer as vLLM's method for its format computes it."""
        config = layer.moe_config  # the kernel sees slots only
        layer.global_num_experts = layer.local_num_experts
        config.num_experts = config.num_logical_experts = layer.local_num_experts
        with torch.device(self._device):
            layer.quant_method.process_weights_after_loading(layer)
            layer._ensure_moe_quant_config_init()  # type: ignore[no-untyped-call]
        if layer.quant_method.is_monolithic:
            raise ModelRefused(
                f"vLLM's {type(layer.quant_method).__name__} chooses the experts itself on this "
                "device, which a shard cannot leave to it"
            )
        return layer

    def layer(self, layer: int) -> HeldVllmLayer:
        """The layer as of now; ExpertsMissing if it holds nothing."""
        held = self._layers.get(layer)
        if held is None:
            raise ExpertsMissing(f"layer {layer} holds no experts")
        return held

    def resident_bytes(self) -> int:
        return sum(held.nbytes for held in list(self._layers.values()))

    def read_expert(self, layer: int, expert: int) -> ExpertTensors:
        """One bf16 expert of a plain model (`ExpertCatalog.plain`), for kernels of our own."""
        with self._loading:
            built: Any = self.read_layer(layer, [expert])
        return ExpertTensors(w13=built.w13_weight.data[0], w2=built.w2_weight.data[0])


def bytes_of(layer: RoutedExperts) -> int:
    """Memory of all tensors of a layer, each storage counted once. What belongs to the router is
    on meta, as the rest of the model."""
    tensors = (t for t in (*layer.parameters(), *layer.buffers()) if not t.is_meta)
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())
