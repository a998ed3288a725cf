"""bf16 experts on vLLM's grouped CPU kernel (`cpu_fused_moe`).

Rounding: GEMMs accumulate in fp32; gate, up and the activation are computed in fp32 and the product
is rounded to bf16; each assignment's weighted output is rounded to bf16 before the fp32 sum.
"""

import torch

from actors.experts.checkpoint import ExpertTensors
from actors.kernels.native_ops import CpuFeatures


class VllmCpuBf16:
    """See `ExpertOperator`."""

    device = torch.device("cpu")

    def __init__(self, features: CpuFeatures) -> None:
        self._isa = features.isa

    def pack(self, expert: ExpertTensors) -> ExpertTensors:
        return ExpertTensors(self._prepack(expert.w13), self._prepack(expert.w2))

    def _prepack(self, weight: torch.Tensor) -> torch.Tensor:
        packed = torch.empty((1, *weight.shape), dtype=weight.dtype)
        torch.ops._C.prepack_moe_weight(weight.unsqueeze(0).contiguous(), packed, self._isa)
        return packed.squeeze(0)

    def run(
        self, held: ExpertTensors, rows: torch.Tensor, slots: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        outputs = torch.empty_like(rows)
        torch.ops._C.cpu_fused_moe(
            outputs,
            rows,
            held.w13,
            held.w2,
            None,  # w13_bias
            None,  # w2_bias
            weights.unsqueeze(1),
            slots.unsqueeze(1),
            False,  # skip_weighted
            "silu",
            self._isa,
        )
        return outputs

    def describe(self) -> str:
        return f"bf16 experts on vLLM's CPU kernel ({self._isa})"
