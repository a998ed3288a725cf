"""vLLM's routed experts without experts: every layer sends its rows to the mesh.

vLLM looks an out-of-tree layer up by the exact name of the class it was about to build, so each
class that models use is registered by itself, as soon as the model's module has defined it. A class
that computes something beyond `RoutedExperts` is refused by name.
"""

from collections.abc import Iterable

import torch
from vllm.config import get_current_vllm_config
from vllm.model_executor.layers.fused_moe.config import FusedMoEConfig, FusedMoEQuantConfig
from vllm.model_executor.layers.fused_moe.fused_moe_method_base import FusedMoEMethodBase
from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts
from vllm.model_executor.layers.fused_moe.runner.shared_experts import (
    SharedExperts,
    SharedExpertsOrder,
)
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig

from actors.vllm_layers import held
from actors.vllm_layers.layer_index import layer_index
from actors.vllm_plugin import opaque_ops
from actors.vllm_plugin.connection import connect_mesh
from actors.vllm_plugin.vllm_config import refuse_unsupported


class RemoteExpertsMethod(FusedMoEMethodBase):
    """vLLM's "quantisation method" of a layer whose weights are elsewhere."""

    def __init__(self, moe: FusedMoEConfig, layer_index: int) -> None:
        super().__init__(moe)
        self._layer_index = layer_index

    def create_weights(self, layer: torch.nn.Module, *args: object, **kwargs: object) -> None:
        """Routed experts have no parameters here, so there is nothing to create."""

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        """Nothing was loaded."""

    def get_fused_moe_quant_config(self, layer: RoutedExperts) -> FusedMoEQuantConfig | None:
        return None

    @property
    def is_monolithic(self) -> bool:
        # vLLM's own routers choose the experts, whatever their rule.
        return False

    @property
    def mk_can_overlap_shared_experts(self) -> bool:
        # `apply` runs them while the rows are away.
        return True

    @property
    def skip_forward_padding(self) -> bool:
        return True

    def maybe_roundup_sizes(
        self, hidden_size: int, intermediate_size_per_partition: int, *_: object
    ) -> tuple[int, int]:
        """Padding serves local kernels; the shards know the true sizes."""
        return hidden_size, intermediate_size_per_partition

    def apply(  # type: ignore[override]
        self,
        layer: RoutedExperts,
        x: torch.Tensor,
        topk_weights: torch.Tensor,
        topk_ids: torch.Tensor,
        shared_experts: SharedExperts | None,
        shared_experts_input: torch.Tensor | None,
    ) -> torch.Tensor:
        """x: [T, H]; topk_weights, topk_ids: [T, K] logical. Returns [T, H] in x's type, of which
        vLLM adds up what all tensor-parallel ranks return."""
        mesh = torch.ops.expertmesh if torch.compiler.is_compiling() else opaque_ops
        call = mesh.send_rows(
            x, topk_weights, topk_ids, self._layer_index, self.moe.tp_rank, self.moe.tp_size
        )
        if shared_experts is not None:
            shared_experts(shared_experts_input, SharedExpertsOrder.MK_INTERNAL_OVERLAPPED)
        sums: torch.Tensor = mesh.wait_sums(call, x)
        return sums


class RemoteRoutedExperts(RoutedExperts):
    """`RoutedExperts` that holds no weight."""

    of_expertmesh = True

    def _get_quant_method(
        self, prefix: str, quant_config: QuantizationConfig | None, moe_config: FusedMoEConfig
    ) -> FusedMoEMethodBase:
        refuse_unsupported(get_current_vllm_config())
        return RemoteExpertsMethod(moe_config, check_layer(prefix, moe_config))

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> Iterable[str]:
        """The loader gives none; a model that assembles its own would have them dropped here."""
        for name, _ in weights:
            yield name


def register_routed_experts() -> None:
    """Put remote classes in vLLM's registry of out-of-tree layers, for every class of routed
    experts that is defined by now. Idempotent."""
    held.replace_all(RemoteRoutedExperts)


def check_layer(prefix: str, moe_config: FusedMoEConfig) -> int:
    """The model layer index in `prefix`, if the mesh serves that layer of this very model.

    Raises:
        ValueError: the mesh's plan does not fit the model this engine loads.
    """
    layer = layer_index(prefix)
    view = connect_mesh()
    if layer not in view.epoch.layers or moe_config.num_experts != view.epoch.num_experts:
        raise ValueError(
            f"this engine's layer {layer} has {moe_config.num_experts} routed experts, but mesh "
            f"{view.mesh!r} serves {view.epoch.num_experts} experts in layers "
            f"{list(view.epoch.layers)} of {view.model_path}; load the same model in both"
        )
    return layer
