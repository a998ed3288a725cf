"""Packing in one pass gives the bytes that vLLM's own operators give."""

import pytest
import torch

from actors.experts.formats.base import NumberFormat
from actors.experts.formats.bf16 import BF16
from actors.experts.formats.fp8_block128 import FP8_BLOCK128
from actors.experts.formats.mxfp4 import MXFP4
from actors.experts.spec import Activation
from actors.kernels.packing import (
    packs_as_vllm,
    rows_by_vllm,
    scales_by_vllm,
    transpose_rows,
    transpose_scales,
)
from actors.kernels.vllm_cpu_fp8_clamped import VllmCpuFp8Clamped
from actors.kernels.vllm_cpu_fused import VllmCpuFused
from tests.actors.kernels.building import (
    CLAMPED,
    GPT_OSS,
    SILU,
    make_experts,
    make_kernel,
    make_spec,
    needs_bf16_cpu,
)

pytestmark = needs_bf16_cpu

DTYPES = (torch.bfloat16, torch.float8_e4m3fn, torch.uint8)


def drawn(rows: int, row_bytes: int) -> torch.Tensor:
    return torch.randint(0, 256, (rows, row_bytes), dtype=torch.uint8)


@pytest.mark.parametrize("alternate", [False, True])
@pytest.mark.parametrize("columns", [32, 96, 160])
@pytest.mark.parametrize("rows", [64, 192])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows(dtype, rows, columns, alternate):
    row_bytes = columns // 2 if dtype is torch.uint8 else columns * dtype.itemsize
    matrix = drawn(rows, row_bytes).view(dtype)
    ours, theirs = torch.empty_like(matrix), torch.empty_like(matrix)
    transpose_rows(matrix, ours, alternate)
    rows_by_vllm(matrix, theirs, alternate)
    assert torch.equal(ours.view(torch.uint8), theirs.view(torch.uint8))


@pytest.mark.parametrize("alternate", [False, True])
@pytest.mark.parametrize("groups", [1, 5, 16, 37, 64])
def test_scales(groups, alternate):
    scales = drawn(64, groups) // 2
    ours, theirs = torch.empty_like(scales), torch.empty_like(scales)
    transpose_scales(scales, ours, alternate, 40)
    scales_by_vllm(scales, theirs, alternate, 40)
    assert torch.equal(ours, theirs)


def test_matrices_stored_the_other_way_round():
    """As gpt-oss has them."""
    matrix = torch.randn(64, 96).bfloat16().T
    ours, theirs = (torch.empty(96, 64, dtype=torch.bfloat16) for _ in range(2))
    transpose_rows(matrix, ours, alternate=True)
    rows_by_vllm(matrix, theirs, alternate=True)
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_installed_vllm_packs_alike(dtype):
    """Else every load takes vLLM's slower operator, with a warning."""
    assert packs_as_vllm(dtype)


@pytest.mark.parametrize(
    ("operator", "weight_format", "activation"),
    [
        (VllmCpuFused, BF16, SILU),
        (VllmCpuFused, BF16, CLAMPED),
        (VllmCpuFused, BF16, GPT_OSS),
        (VllmCpuFused, FP8_BLOCK128, SILU),
        (VllmCpuFused, MXFP4, SILU),
        (VllmCpuFused, MXFP4, CLAMPED),
        (VllmCpuFused, MXFP4, GPT_OSS),
        (VllmCpuFp8Clamped, FP8_BLOCK128, CLAMPED),
    ],
)
def test_what_is_packed_into_slots_is_what_pack_gives(
    operator: type, weight_format: NumberFormat, activation: Activation
) -> None:
    spec = make_spec(weight_format, activation, hidden=96, inter=64)
    experts = make_experts(spec)
    packer = operator(spec)
    kernel = make_kernel(spec, packer, experts)
    kernel.load(0, [3, 1])
    kernel.load(0, [5, 1, 0])
    stacked = kernel._store.layer(0).stacked.tensors()
    for slot, expert in enumerate((5, 1, 0)):
        for held, wanted in zip(stacked, packer.pack(experts[expert]).tensors(), strict=True):
            assert held.dtype == wanted.dtype
            assert torch.equal(held[slot].view(torch.uint8), wanted.view(torch.uint8))
