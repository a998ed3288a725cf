"""Experts on any torch device, in plain torch operators.

Weights stay in their native format on the device; each call dequantises the experts it uses, one at
a time. Slow beside a native kernel, but exact: it is the fallback and what native ones are tested
against.

Rounding: on a CPU everything is fp32. On other devices GEMMs take and return bf16 (fp32 inside):
FP8 weights, gate and up, the activated product and the output before its routing weight are
rounded to bf16; the activation itself is fp32.
"""

import torch

from actors.experts.checkpoint import ExpertTensors
from actors.experts.spec import ExpertSpec
from actors.kernels.base import ExpertOperator
from actors.kernels.grouped import run_grouped
from actors.kernels.target import Target

NAME = "plain torch"
IS_FALLBACK = True


def why_not(_spec: ExpertSpec, _target: Target) -> str | None:
    """It computes everything everywhere."""
    return None


def build(spec: ExpertSpec, target: Target) -> ExpertOperator:
    return TorchPortable(spec, target.device)


class TorchPortable:
    """See `ExpertOperator`. dtype: of the GEMMs; fp32 on a CPU and bf16 elsewhere if not given."""

    def __init__(
        self, spec: ExpertSpec, device: torch.device, dtype: torch.dtype | None = None
    ) -> None:
        self.device = device
        self.weight_format = spec.weight_format
        self._activation = spec.activation
        native = torch.float32 if device.type == "cpu" else torch.bfloat16
        self._dtype = dtype or native

    def pack(self, expert: ExpertTensors) -> ExpertTensors:
        return expert.map(lambda tensor: tensor.to(self.device))

    def run(
        self, held: ExpertTensors, rows: torch.Tensor, slots: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        decode = self.weight_format.decode

        def gate_up(slot: int, x: torch.Tensor) -> torch.Tensor:
            expert = held.map(lambda tensor: tensor[slot])
            return self._linear(
                x, decode(expert.w13, expert.w13_scale, self._dtype, halves=2), expert.w13_bias
            )

        def down(slot: int, x: torch.Tensor) -> torch.Tensor:
            expert = held.map(lambda tensor: tensor[slot])
            weight = decode(expert.w2, expert.w2_scale, self._dtype)
            return self._linear(x, weight, expert.w2_bias)

        rows = rows.to(self._dtype)
        return run_grouped(
            rows, slots, weights, gate_up=gate_up, down=down, activation=self._activation
        )

    def _linear(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        bias = None if bias is None else bias.to(self._dtype)
        return torch.nn.functional.linear(x, weight, bias)

    def describe(self) -> str:
        return f"{self.weight_format.name} experts in plain torch on {self.device}"
