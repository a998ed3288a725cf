"""The grouped GEMM operator: on CPU tensors (torch multiplies group by group there), on tensors
without data, and with an injected GEMM. Its outputs against fp32 are in `test_operators.py`."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.experts.formats.bf16 import BF16
from actors.experts.formats.fp8_block128 import FP8_BLOCK128
from actors.experts.formats.mxfp4 import MXFP4
from actors.experts.spec import ExpertSpec
from actors.kernels.base import ExpertOperator
from actors.kernels.bf16_at_load import to_bf16
from actors.kernels.dequantise_stack import dequantise_stack
from actors.kernels.torch_grouped import FORMATS, TorchGrouped, supports
from actors.kernels.torch_portable import TorchPortable
from tests.actors.kernels.building import (
    CLAMPED,
    GPT_OSS,
    SILU,
    make_batch,
    make_experts,
    make_kernel,
    make_spec,
)

CPU = torch.device("cpu")
META = torch.device("meta")
ACTIVATIONS = (SILU, CLAMPED, GPT_OSS)
QUANTISED = [FP8_BLOCK128, MXFP4]


def two_experts(spec: ExpertSpec) -> int:
    """A scratch that holds two experts' gate and up."""
    return 2 * 2 * 2 * spec.intermediate_size * spec.hidden_size


def sums_of(operator: ExpertOperator, spec: ExpertSpec, batch, held: list[int]) -> torch.Tensor:
    kernel = make_kernel(spec, operator, make_experts(spec))
    kernel.load(0, held)
    return kernel.compute(0, *batch)


@st.composite
def assignments(draw):
    """Few to many assignments over few of the experts held, so that groups are empty and full."""
    used = draw(st.lists(st.integers(0, 5), min_size=1, max_size=6, unique=True))
    pairs = st.tuples(st.integers(0, 8), st.sampled_from(used))
    return draw(st.lists(pairs, min_size=1, max_size=30))


@pytest.mark.parametrize("weight_format", QUANTISED)
@settings(max_examples=40, deadline=None)
@given(ids=assignments(), activation=st.sampled_from(ACTIVATIONS), seed=st.integers(0, 999))
def test_a_small_scratch_changes_no_bit(weight_format, ids, activation, seed):
    spec = make_spec(weight_format, activation, hidden=160, inter=96)
    batch = make_batch(9, 160, ids, seed=seed)
    held = [4, 0, 5, 1, 3, 2]
    whole = sums_of(TorchGrouped(spec, CPU), spec, batch, held)
    in_parts = sums_of(TorchGrouped(spec, CPU, two_experts(spec)), spec, batch, held)
    assert torch.equal(in_parts, whole)


@pytest.mark.parametrize("weight_format", FORMATS)
@settings(max_examples=25, deadline=None)
@given(ids=assignments(), activation=st.sampled_from(ACTIVATIONS))
def test_agrees_with_the_portable_kernel(weight_format, ids, activation):
    """Both round where accelerators do; only the order of fp32 additions differs."""
    spec = make_spec(weight_format, activation, hidden=128, inter=64)
    batch = make_batch(9, 128, ids)
    held = list(range(6))
    ours = sums_of(TorchGrouped(spec, CPU), spec, batch, held)
    portable = sums_of(TorchPortable(spec, CPU, torch.bfloat16), spec, batch, held)
    assert (ours - portable).norm() <= 0.01 * portable.norm()


@pytest.mark.parametrize("weight_format", FORMATS)
@pytest.mark.parametrize("num_assignments", [1, 4, 50])
def test_nothing_waits_for_the_device(weight_format, num_assignments):
    """Tensors without data have sizes only: whatever looked at a value would raise here, and would
    wait on a device."""
    spec = make_spec(weight_format, GPT_OSS, hidden=160, inter=96)
    stacked = make_experts(spec)[0].map(lambda tensor: torch.stack([tensor] * 6).to(META))
    call = (
        torch.empty(num_assignments, 160, dtype=torch.bfloat16, device=META),
        torch.empty(num_assignments, dtype=torch.int32, device=META),
        torch.empty(num_assignments, device=META),
    )
    operator = TorchGrouped(spec, META, two_experts(spec))
    outputs = operator.run(stacked, *call)
    assert outputs.shape == (num_assignments, 160)
    assert outputs.dtype == torch.float32
    with pytest.raises((RuntimeError, NotImplementedError)):
        TorchPortable(spec, META).run(stacked, *call)


@pytest.mark.parametrize("weight_format", FORMATS)
def test_what_the_gemm_is_given(weight_format):
    """Groups cover all rows in order; quantised formats have no more of them than assignments; rows
    past the last end may come back as anything."""
    spec = make_spec(weight_format, SILU, hidden=128, inter=64)
    asked: list[tuple[int, list[int]]] = []

    def gemm(x: torch.Tensor, weights: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
        assert x.is_contiguous()
        assert weights.is_contiguous()
        assert ends.dtype is torch.int32
        asked.append((len(x), ends.tolist()))
        product = torch.full((len(x), weights.shape[1]), torch.nan, dtype=torch.bfloat16)
        start = 0
        for group, end in enumerate(ends.tolist()):
            product[start:end] = x[start:end] @ weights[group].T
            start = end
        return product

    batch = make_batch(3, 128, [(0, 4), (1, 1), (2, 4)])
    held = list(range(6))
    sums = sums_of(TorchGrouped(spec, CPU, two_experts(spec), gemm), spec, batch, held)
    assert torch.equal(sums, sums_of(TorchGrouped(spec, CPU), spec, batch, held))
    if weight_format == BF16:
        assert asked == [(3, [0, 1, 1, 1, 3, 3])] * 2
    else:  # used slots 1 and 4 in one part, an unused one in the other
        assert asked == [(3, [1, 3]), (3, [0])] * 2


def test_same_call_same_bits():
    spec = make_spec(FP8_BLOCK128, SILU, hidden=128, inter=64)
    kernel = make_kernel(spec, TorchGrouped(spec, CPU), make_experts(spec))
    kernel.load(0, list(range(6)))
    small, large = (
        make_batch(8, 128, [(row % 8, row % 5) for row in range(count)]) for count in (3, 40)
    )
    first = kernel.compute(0, *small), kernel.compute(0, *large)
    again = kernel.compute(0, *small), kernel.compute(0, *large)
    for before, after in zip(first, again, strict=True):
        assert torch.equal(before, after)


@pytest.mark.parametrize("weight_format", QUANTISED)
@pytest.mark.parametrize(("hidden", "inter"), [(128, 128), (160, 96), (288, 160), (96, 32)])
def test_stacks_become_the_bf16_of_single_experts(weight_format, hidden, inter):
    """Also where sizes are no multiple of the blocks."""
    spec = make_spec(weight_format, SILU, hidden, inter)
    experts = list(make_experts(spec).values())
    w13 = torch.empty(len(experts), 2 * inter, hidden, dtype=torch.bfloat16)
    w2 = torch.empty(len(experts), hidden, inter, dtype=torch.bfloat16)
    dequantise_stack(
        torch.stack([one.w13 for one in experts]),
        torch.stack([one.w13_scale for one in experts]),
        2,
        w13,
    )
    dequantise_stack(
        torch.stack([one.w2 for one in experts]),
        torch.stack([one.w2_scale for one in experts]),
        1,
        w2,
    )
    for number, one in enumerate(experts):
        assert torch.equal(w13[number], to_bf16(one, weight_format).w13)
        assert torch.equal(w2[number], to_bf16(one, weight_format).w2)


def test_sizes_the_grouped_gemm_takes():
    assert supports(make_spec(BF16, SILU, hidden=72, inter=40))
    assert not supports(make_spec(BF16, SILU, hidden=68, inter=40))
    assert not supports(make_spec(BF16, SILU, hidden=72, inter=36))
    assert not supports(make_spec(BF16, SILU, num_experts=1024))
    spec = make_spec(BF16, SILU, hidden=68, inter=40)
    batch = make_batch(1, 68, [(0, 0)])
    with pytest.raises(RuntimeError, match="16 bytes"):
        sums_of(TorchGrouped(spec, CPU), spec, batch, [0])
