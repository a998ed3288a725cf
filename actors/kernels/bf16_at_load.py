"""Quantised experts where no kernel computes their format: made bf16 when loaded.

Takes 2 (FP8) to 4 (MXFP4) times the memory and keeps the speed of a bf16 kernel.
"""

import dataclasses
import logging

import torch

from actors.experts.checkpoint import ExpertTensors
from actors.experts.formats.base import NumberFormat
from actors.experts.formats.bf16 import BF16
from actors.experts.spec import ExpertSpec
from actors.kernels import vllm_cpu_bf16
from actors.kernels.base import ExpertOperator
from actors.kernels.target import Target

logger = logging.getLogger(__name__)

NAME = "a bf16 kernel, converted at load"
IS_FALLBACK = False  # `build` says what it costs


def why_not(spec: ExpertSpec, target: Target) -> str | None:
    if (problem := target.cpu_problem) is not None:
        return problem
    if vllm_cpu_bf16.supports(spec):
        return None
    return f"no native kernel computes {spec.activation} at these sizes"


def build(spec: ExpertSpec, target: Target) -> ExpertOperator:
    converted = as_bf16(spec)
    logger.warning(
        "no %s kernel for this model on this CPU: experts become bf16, %.1f times the memory",
        spec.weight_format.name,
        converted.bytes_per_expert / spec.bytes_per_expert,
    )
    return Bf16AtLoad(vllm_cpu_bf16.build(converted, target), spec.weight_format)


def as_bf16(spec: ExpertSpec) -> ExpertSpec:
    return dataclasses.replace(spec, weight_format=BF16)


class Bf16AtLoad:
    """See `ExpertOperator`: `inner`, fed with bf16 experts."""

    def __init__(self, inner: ExpertOperator, stored: NumberFormat) -> None:
        self._inner = inner
        self._stored = stored

    weight_format = BF16

    @property
    def device(self) -> torch.device:
        return self._inner.device

    def pack(self, expert: ExpertTensors) -> ExpertTensors:
        return self._inner.pack(to_bf16(expert, self._stored))

    def run(
        self, held: ExpertTensors, rows: torch.Tensor, slots: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        return self._inner.run(held, rows, slots, weights)

    def describe(self) -> str:
        return f"{self._inner.describe()}, converted from {self._stored.name} at load"


def to_bf16(expert: ExpertTensors, stored: NumberFormat) -> ExpertTensors:
    """The whole expert in bf16, without scales."""
    return ExpertTensors(
        w13=stored.decode(expert.w13, expert.w13_scale, torch.bfloat16, halves=2),
        w2=stored.decode(expert.w2, expert.w2_scale, torch.bfloat16),
        w13_bias=expert.w13_bias,
        w2_bias=expert.w2_bias,
    )
