"""Every operator against exact arithmetic, over shapes, assignments and magnitudes.

How far it may be off follows from the formats it computes in: see `bounds`.
"""

import dataclasses
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.experts.formats.base import NumberFormat
from actors.experts.formats.bf16 import BF16
from actors.experts.formats.fp8_block128 import FP8_BLOCK128
from actors.experts.formats.fp8_rows import FP8_ROWS
from actors.experts.formats.int4_group import INT4_GROUP32, INT4_ROW
from actors.experts.formats.int4_zeros import INT4_ZEROS
from actors.experts.formats.int8_rows import INT8_GROUP32, INT8_ROW
from actors.experts.formats.mxfp4 import MXFP4
from actors.experts.formats.nvfp4 import NVFP4
from actors.experts.spec import Activation, ExpertSpec
from actors.kernels.base import ExpertOperator
from actors.kernels.bf16_at_load import Bf16AtLoad
from actors.kernels.torch_grouped import TorchGrouped
from actors.kernels.torch_portable import TorchPortable
from actors.kernels.vllm_cpu_bf16 import VllmCpuBf16
from actors.kernels.vllm_cpu_fp8_clamped import VllmCpuFp8Clamped
from actors.kernels.vllm_cpu_fused import VllmCpuFused
from tests.actors.kernels.bounds import IN_BF16, IN_FP32, Bounded, bounded_reference
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
from tests.actors.kernels.reference import float_expert, gate_and_up

FP8 = FP8_BLOCK128

DECODED = (FP8_ROWS, NVFP4, INT8_ROW, INT8_GROUP32, INT4_GROUP32, INT4_ROW, INT4_ZEROS[0])
"""Computed by plain torch alone; others are kept as one of these. Sizes here are no multiples of
larger groups."""

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


def native(make: Make, weight_format: NumberFormat, activation: Activation, needs):
    name = f"{make.__name__}-{weight_format.name}-{activation.kind.value}-{activation.limit}"
    return pytest.param(make, weight_format, activation, IN_BF16, marks=needs, id=name)


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
    native(grouped_bf16_at_load, INT8_ROW, SILU, needs_vllm_ops),
    native(grouped_bf16_at_load, INT4_GROUP32, SILU, needs_vllm_ops),
    *(
        pytest.param(
            make,
            weight_format,
            activation,
            rounding,
            id=f"{make.__name__}-{weight_format}-{activation.kind.value}-{activation.limit}",
        )
        for make, rounding in (
            (portable, IN_FP32),
            (portable_bf16, IN_BF16),
            (grouped_gemm, IN_BF16),
        )
        for weight_format in (BF16, FP8, MXFP4, *DECODED)
        for activation in (SILU, CLAMPED, GPT_OSS)
        if weight_format not in DECODED or (activation is SILU and make is not grouped_gemm)
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


def exceeds(sums: torch.Tensor, expected: Bounded) -> torch.Tensor:
    """bool [R, H]: where sums are further off than correct code can be."""
    return ~((sums.double() - expected.value).abs() <= expected.error)


@pytest.mark.parametrize(("make", "weight_format", "activation", "rounding"), OPERATORS)
@settings(max_examples=15, deadline=None)
@given(problem=problems())
def test_close_to_fp32(make, weight_format, activation, rounding, problem):
    hidden, inter, batch = problem
    spec = make_spec(weight_format, activation, hidden, inter)
    experts = make_experts(spec)
    kernel = make_kernel(spec, make(spec), experts)
    kernel.load(0, [4, 0, 5, 1, 3, 2])

    sums = kernel.compute(0, *batch)

    assert sums.dtype == torch.float32
    assert sums.is_contiguous()
    assert not exceeds(sums, bounded_reference(experts, activation, batch, rounding)).any()


def off_by_one_step(scale: torch.Tensor) -> torch.Tensor:
    """The smallest wrong exponent of MXFP4, or an fp32 scale a quarter too large."""
    return scale + 1 if scale.dtype is torch.uint8 else scale * 1.25


SCALED = [entry for entry in OPERATORS if entry.values[1] is not BF16]


@pytest.mark.parametrize(("make", "weight_format", "activation", "rounding"), SCALED)
@pytest.mark.parametrize("which", ["w13_scale", "w2_scale"])
def test_a_wrong_scale_is_out_of_bounds(make, weight_format, activation, rounding, which):
    """The bounds are tight enough to tell it, in one expert of six."""
    spec = make_spec(weight_format, activation, hidden=160, inter=96)
    experts = make_experts(spec)
    scale = off_by_one_step(getattr(experts[2], which))
    wrong = experts | {2: dataclasses.replace(experts[2], **{which: scale})}
    kernel = make_kernel(spec, make(spec), wrong)
    kernel.load(0, list(range(6)))
    batch = make_batch(6, 160, [(row, row) for row in range(6)])
    sums = kernel.compute(0, *batch)
    found = exceeds(sums, bounded_reference(experts, activation, batch, rounding))
    assert found.any(dim=1).nonzero().flatten().tolist() == [2]


@pytest.mark.parametrize(("make", "weight_format", "activation", "rounding"), OPERATORS)
@pytest.mark.parametrize(
    "ids",
    [
        pytest.param([(0, 3)], id="one-row"),
        pytest.param([(row, 2) for row in range(40)], id="all-to-one-expert"),
        pytest.param([(0, number) for number in range(6)] * 3, id="one-row-many-times"),
        pytest.param([(7, 0), (1, 1), (7, 1), (0, 5)], id="rows-without-assignments"),
    ],
)
def test_extreme_assignments(make, weight_format, activation, rounding, ids):
    spec = make_spec(weight_format, activation, hidden=128, inter=64)
    experts = make_experts(spec)
    kernel = make_kernel(spec, make(spec), experts)
    kernel.load(1, list(range(6)))
    batch = make_batch(40, 128, ids)
    sums = kernel.compute(1, *batch)
    assert not exceeds(sums, bounded_reference(experts, activation, batch, rounding)).any()
    assert (sums[sorted(set(range(40)) - {row for row, _ in ids})] == 0).all()


CLAMPING = [entry for entry in OPERATORS if entry.values[2].limit is not None]


@pytest.mark.parametrize(("make", "weight_format", "activation", "rounding"), CLAMPING)
def test_clamp_binds_hard(make, weight_format, activation, rounding):
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

    assert not exceeds(sums, bounded_reference(experts, activation, batch, rounding)).any()
    without_limit = Activation(activation.kind, alpha=activation.alpha)
    unclamped = bounded_reference(experts, without_limit, batch, rounding).value
    assert (sums - unclamped).norm() > 0.9 * unclamped.norm()


# gpt-oss's biases, and the 1 it adds to up, leave nothing tiny.
CLAMPED_SILU = [entry for entry in CLAMPING if entry.values[2] is CLAMPED]


@pytest.mark.parametrize(("make", "weight_format", "activation", "rounding"), CLAMPED_SILU)
def test_tiny_values_keep_their_precision(make, weight_format, activation, rounding):
    """Far below the limit the product is as exact as anywhere (no constant is left in it)."""
    spec = make_spec(weight_format, activation, hidden=128, inter=64)
    experts = make_experts(spec)
    kernel = make_kernel(spec, make(spec), experts)
    kernel.load(0, list(range(6)))
    batch = make_batch(6, 128, [(row, row) for row in range(6)], scale=1e-6)
    sums = kernel.compute(0, *batch)
    assert (sums != 0).any(dim=1).all()
    assert not exceeds(sums, bounded_reference(experts, activation, batch, rounding)).any()


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


@needs_vllm_ops
def test_shards_of_one_process_may_use_the_grouped_kernel_at_the_same_time():
    """Its scratch memory is one for the process: without a lock this is a segmentation fault."""
    spec = make_spec(BF16, SILU, hidden=128, inter=64)
    experts = make_experts(spec)
    shards = [make_kernel(spec, grouped_bf16(spec), experts) for _ in range(2)]
    batches = [
        make_batch(rows, 128, [(row, row % spec.num_experts) for row in range(rows)])
        for rows in (64, 300)
    ]
    for shard in shards:
        shard.load(0, sorted(experts))
    alone = [shard.compute(0, *batch) for shard, batch in zip(shards, batches, strict=True)]

    def repeated(shard, batch, expected):
        return all(torch.equal(shard.compute(0, *batch), expected) for _ in range(100))

    with ThreadPoolExecutor(len(shards)) as threads:
        assert all(threads.map(repeated, shards, batches, alone))
