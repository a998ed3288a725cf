"""Rows on a device: the same sums, bit by bit, as on the CPU."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from actors.experts.formats.bf16 import BF16
from actors.kernels.device_rows import compute_on_device, nth_assignments, sum_in_order
from actors.kernels.summing import sum_outputs
from actors.kernels.torch_portable import TorchPortable
from tests.actors.kernels.building import SILU, make_batch, make_experts, make_kernel, make_spec

CPU = torch.device("cpu")


@given(
    row_index=st.lists(st.integers(0, 6), min_size=1, max_size=40),
    dtype=st.sampled_from([torch.bfloat16, torch.float32]),
)
def test_same_bits_as_the_hosts_sum(row_index, dtype):
    generator = torch.Generator().manual_seed(len(row_index))
    outputs = torch.randn(len(row_index), 5, generator=generator).to(dtype) * 3
    index = torch.tensor(row_index, dtype=torch.int32)
    wanted = torch.full((7, 5), torch.nan)
    sum_outputs(outputs, index, wanted)
    sums = sum_in_order(outputs, nth_assignments(index, 7))
    assert sums.dtype == torch.float32
    assert torch.equal(sums, wanted)


def test_assignments_of_each_row_in_ascending_order():
    nth = nth_assignments(torch.tensor([2, 0, 2, 2, 0], dtype=torch.int32), 4)
    assert nth.tolist() == [[1, 5, 0, 5], [4, 5, 2, 5], [5, 5, 3, 5]]
    assert nth.dtype == torch.int32


@pytest.fixture
def call():
    """(operator, stacked experts, rows, row_index, slots, weights), and the sums a CPU gives."""
    spec = make_spec(BF16, SILU)
    experts = make_experts(spec)
    kernel = make_kernel(spec, TorchPortable(spec, CPU), experts)
    kernel.load(0, list(range(6)))
    rows, row_index, slots, weights = make_batch(4, 64, [(3, 1), (0, 2), (3, 5), (0, 0), (3, 2)])
    first = experts[0]
    stacked = type(first)(
        w13=torch.stack([one.w13 for one in experts.values()]),
        w2=torch.stack([one.w2 for one in experts.values()]),
    )
    wanted = kernel.compute(0, rows, row_index, slots, weights)
    return (TorchPortable(spec, CPU), stacked, rows, row_index, slots, weights), wanted


def test_same_sums_as_on_the_cpu(call):
    arguments, wanted = call
    sums = torch.full_like(wanted, torch.nan)
    compute_on_device(*arguments, sums)
    assert torch.equal(sums, wanted)
    assert not sums[1].any()


@pytest.mark.parametrize("row", [-1, 4])
def test_rows_that_do_not_exist_raise(call, row):
    (operator, stacked, rows, row_index, slots, weights), wanted = call
    row_index[2] = row
    with pytest.raises(IndexError, match=r"row_index out of \[0, 4\)"):
        compute_on_device(operator, stacked, rows, row_index, slots, weights, wanted)
