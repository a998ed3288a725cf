"""Every operator against fp32, over shapes, assignments and magnitudes.

Tolerance: the error of a row's sum is at most TOLERANCE times the summed norms of its parts. bf16
rounding (2^-9 each) of gate, up, the activated product and the output explains 0.004 on average;
rows of few columns scatter around that.
"""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.experts.spec import Activation, ExpertSpec, WeightFormat
from actors.kernels.base import ExpertOperator
from actors.kernels.bf16_at_load import Bf16AtLoad
from actors.kernels.torch_grouped import TorchGrouped
from actors.kernels.torch_portable import TorchPortable
from actors.kernels.vllm_cpu_bf16 import VllmCpuBf16
from actors.kernels.vllm_cpu_fp8_clamped import VllmCpuFp8Clamped
from actors.kernels.vllm_cpu_fused import VllmCpuFused
from tests.actors.kernels.building import (
    CLAMPED,
    FEATURES,
    GPT_OSS,
    SILU,
    make_batch,
    make_experts,
    make_kernel,
    make_spec,
    needs_bf16_cpu,
    needs_vllm_ops,
)
from tests.actors.kernels.reference import float_expert, gate_and_up, reference

TOLERANCE = 0.02
FP32_TOLERANCE = 1e-4  # inputs reach 1e4, so gates near zero are differences of large sums

BF16, FP8, MXFP4 = WeightFormat.BF16, WeightFormat.FP8_BLOCK128, WeightFormat.MXFP4

Make = Callable[[ExpertSpec], ExpertOperator]


def grouped_bf16(spec: ExpertSpec) -> ExpertOperator:
    return VllmCpuBf16(spec, FEATURES)


def grouped_bf16_at_load(spec: ExpertSpec) -> ExpertOperator:
    return Bf16AtLoad(VllmCpuBf16(spec, FEATURES), spec.weight_format)


def portable(spec: ExpertSpec) -> ExpertOperator:
    return TorchPortable(spec, torch.device("cpu"))


def portable_bf16(spec: ExpertSpec) -> ExpertOperator:
    """As on accelerators."""
    return TorchPortable(spec, torch.device("cpu"), torch.bfloat16)


def grouped_gemm(spec: ExpertSpec) -> ExpertOperator:
    return TorchGrouped(spec, torch.device("cpu"))


def native(make: Make, weight_format: WeightFormat, activation: Activation, needs):
    name = f"{make.__name__}-{weight_format.value}-{activation.kind.value}-{activation.limit}"
    return pytest.param(make, weight_format, activation, TOLERANCE, marks=needs, id=name)


OPERATORS = [
    native(VllmCpuFused, BF16, SILU, needs_bf16_cpu),
    native(VllmCpuFused, BF16, CLAMPED, needs_bf16_cpu),
    native(VllmCpuFused, BF16, GPT_OSS, needs_bf16_cpu),
    native(VllmCpuFused, FP8, SILU, needs_bf16_cpu),
    native(VllmCpuFused, MXFP4, SILU, needs_bf16_cpu),
    native(VllmCpuFused, MXFP4, CLAMPED, needs_bf16_cpu),
    native(VllmCpuFused, MXFP4, GPT_OSS, needs_bf16_cpu),
    native(VllmCpuFp8Clamped, FP8, CLAMPED, needs_bf16_cpu),
    native(grouped_bf16, BF16, SILU, needs_vllm_ops),
    native(grouped_bf16, BF16, GPT_OSS, needs_vllm_ops),
    native(grouped_bf16_at_load, FP8, SILU, needs_vllm_ops),
    native(grouped_bf16_at_load, MXFP4, SILU, needs_vllm_ops),
    *(
        pytest.param(
            make,
            weight_format,
            activation,
            tolerance,
            id=f"{make.__name__}-{weight_format.value}-{activation.kind.value}-{activation.limit}",
        )
        for make, tolerance in (
            (portable, FP32_TOLERANCE),
            (portable_bf16, TOLERANCE),
            (grouped_gemm, TOLERANCE),
        )
        for weight_format in WeightFormat
        for activation in (SILU, CLAMPED, GPT_OSS)
    ),
]


@st.composite
def problems(draw):
    hidden = draw(st.sampled_from([32, 64, 96, 160, 256]))
    inter = draw(st.sampled_from([32, 64, 96, 128, 160]))
    num_rows = draw(st.integers(1, 9))
    pairs = st.tuples(st.integers(0, num_rows - 1), st.integers(0, 5))
    ids = draw(st.lists(pairs, min_size=1, max_size=40))
    scale = draw(st.sampled_from([1e-3, 1.0, 4.0, 100.0]))
    return hidden, inter, make_batch(num_rows, hidden, ids, scale, draw(st.integers(0, 999)))


@pytest.mark.parametrize(("make", "weight_format", "activation", "tolerance"), OPERATORS)
@settings(max_examples=15, deadline=None)
@given(problem=problems())
def test_close_to_fp32(make, weight_format, activation, tolerance, problem):
    hidden, inter, batch = problem
    spec = make_spec(weight_format, activation, hidden, inter)
    experts = make_experts(spec)
    kernel = make_kernel(spec, make(spec), experts)
    kernel.load(0, [4, 0, 5, 1, 3, 2])

    sums = kernel.compute(0, *batch)

    expected, norms = reference(experts, activation, batch)
    assert sums.dtype == torch.float32
    assert sums.is_contiguous()
    errors = (sums - expected).norm(dim=1)
    assert (errors <= tolerance * norms + 1e-12).all(), (errors / norms).max()


@pytest.mark.parametrize(("make", "weight_format", "activation", "tolerance"), OPERATORS)
@pytest.mark.parametrize(
    "ids",
    [
        pytest.param([(0, 3)], id="one-row"),
        pytest.param([(row, 2) for row in range(40)], id="all-to-one-expert"),
        pytest.param([(0, number) for number in range(6)] * 3, id="one-row-many-times"),
        pytest.param([(7, 0), (1, 1), (7, 1), (0, 5)], id="rows-without-assignments"),
    ],
)
def test_extreme_assignments(make, weight_format, activation, tolerance, ids):
    spec = make_spec(weight_format, activation, hidden=128, inter=64)
    experts = make_experts(spec)
    kernel = make_kernel(spec, make(spec), experts)
    kernel.load(1, list(range(6)))
    batch = make_batch(40, 128, ids)
    sums = kernel.compute(1, *batch)
    expected, norms = reference(experts, activation, batch)
    assert ((sums - expected).norm(dim=1) <= tolerance * norms).all()
    assert (sums[norms == 0] == 0).all()


CLAMPING = [entry for entry in OPERATORS if entry.values[2].limit is not None]

# FP8 weights rounded to bf16 flip the sign of gates near zero; a clamped gate is all or nothing.
EXACT_CLAMPING = [
    entry
    for entry in CLAMPING
    if entry.values[0] not in (portable_bf16, grouped_gemm)
    or entry.values[1] is not WeightFormat.FP8_BLOCK128
]


@pytest.mark.parametrize(("make", "weight_format", "activation", "tolerance"), EXACT_CLAMPING)
def test_clamp_binds_hard(make, weight_format, activation, tolerance):
    """Activations far beyond the limit: nearly every gate and up is clamped."""
    spec = make_spec(weight_format, activation, hidden=256, inter=128)
    experts = make_experts(spec)
    kernel = make_kernel(spec, make(spec), experts)
    kernel.load(0, list(range(6)))
    batch = make_batch(12, 256, [(row, row % 6) for row in range(12)], scale=1e4)
    w13, _ = float_expert(experts[0])
    for value in gate_and_up(w13, None, batch[0][0]):
        assert (value.abs() > 10 * activation.limit).float().mean() > 0.9

    sums = kernel.compute(0, *batch)

    expected, norms = reference(experts, activation, batch)
    unclamped, _ = reference(experts, Activation(activation.kind, alpha=activation.alpha), batch)
    assert ((sums - expected).norm(dim=1) <= tolerance * norms).all()
    assert (sums - unclamped).norm() > 0.9 * unclamped.norm()


# gpt-oss's biases, and the 1 it adds to up, leave nothing tiny.
CLAMPED_SILU = [entry for entry in CLAMPING if entry.values[2] is CLAMPED]


@pytest.mark.parametrize(("make", "weight_format", "activation", "tolerance"), CLAMPED_SILU)
def test_tiny_values_keep_their_precision(make, weight_format, activation, tolerance):
    """Far below the limit the product is as exact as anywhere (no constant is left in it)."""
    spec = make_spec(weight_format, activation, hidden=128, inter=64)
    experts = make_experts(spec)
    kernel = make_kernel(spec, make(spec), experts)
    kernel.load(0, list(range(6)))
    batch = make_batch(6, 128, [(row, row) for row in range(6)], scale=1e-6)
    sums = kernel.compute(0, *batch)
    expected, norms = reference(experts, activation, batch)
    assert (norms > 0).all()
    assert ((sums - expected).norm(dim=1) <= tolerance * norms).all()


@needs_bf16_cpu
@pytest.mark.parametrize("weight_format", [BF16, MXFP4])
def test_a_row_does_not_depend_on_its_batch(weight_format):
    """Bit by bit the same alone and among others, so resending rows elsewhere changes nothing."""
    spec = make_spec(weight_format, CLAMPED, hidden=256, inter=128)
    experts = make_experts(spec)
    kernel = make_kernel(spec, VllmCpuFused(spec), experts)
    kernel.load(0, list(range(6)))
    ids = [(row, number) for row in range(20) for number in (row % 6, (row + 2) % 6)]
    rows, row_index, numbers, weights = make_batch(20, 256, ids)
    together = kernel.compute(0, rows, row_index, numbers, weights)
    for row in range(20):
        mine = row_index == row
        alone = kernel.compute(
            0,
            rows[row : row + 1],
            torch.zeros(2, dtype=torch.int32),
            numbers[mine],
            weights[mine],
        )
        assert torch.equal(alone[0], together[row])
