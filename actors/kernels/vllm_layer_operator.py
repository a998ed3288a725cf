"""vLLM's own layer as the operator of a kernel."""

from typing import Any

import torch
from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts

from actors.experts.checkpoint import ExpertTensors
from actors.experts.formats.base import NumberFormat
from actors.kernels.native_ops import GROUPED_CPU_KERNEL


class VllmLayerOperator:
    """See `ExpertOperator`; `held` is a layer, which its store has packed already."""

    def __init__(self, device: torch.device, weight_format: NumberFormat, method: str) -> None:
        self.device = device
        self.weight_format = weight_format
        self._method = method

    def pack(self, expert: ExpertTensors) -> ExpertTensors:
        raise TypeError("vLLM's own layers are packed whole")

    def run(
        self, held: Any, rows: torch.Tensor, slots: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        """[A, H]; each row goes through one expert, so top-k is one."""
        layer: RoutedExperts = held
        hidden = rows.shape[1]
        if layer.hidden_size > hidden:
            rows = torch.nn.functional.pad(rows, (0, layer.hidden_size - hidden))
        with GROUPED_CPU_KERNEL:
            outputs: Any = layer.quant_method.apply(
                layer,
                rows,
                topk_weights=weights.unsqueeze(1),
                topk_ids=slots.unsqueeze(1),
                shared_experts=None,
                shared_experts_input=None,
            )
        sums: torch.Tensor = outputs[:, :hidden].contiguous()
        return sums

    def describe(self) -> str:
        name = self.weight_format.name
        return f"{name} experts in vLLM's own layer ({self._method}) on {self.device}"
