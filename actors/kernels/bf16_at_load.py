"""Quantised experts where no kernel computes their format: made bf16 when loaded.

Takes 2 (FP8) to 4 (MXFP4) times the memory and keeps the speed of a bf16 kernel.
"""

import torch

from actors.experts.checkpoint import ExpertTensors
from actors.experts.spec import WeightFormat
from actors.kernels.base import ExpertOperator
from actors.kernels.dequantise import to_bf16


class Bf16AtLoad:
    """See `ExpertOperator`: `inner`, fed with bf16 experts."""

    def __init__(self, inner: ExpertOperator, stored: WeightFormat) -> None:
        self._inner = inner
        self._stored = stored

    weight_format = WeightFormat.BF16

    @property
    def device(self) -> torch.device:
        return self._inner.device

    def pack(self, expert: ExpertTensors) -> ExpertTensors:
        return self._inner.pack(to_bf16(expert))

    def run(
        self, held: ExpertTensors, rows: torch.Tensor, slots: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        return self._inner.run(held, rows, slots, weights)

    def describe(self) -> str:
        return f"{self._inner.describe()}, converted from {self._stored.value} at load"
