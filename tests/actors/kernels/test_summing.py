"""Sums over a row's experts have the bits of torch's, whatever the order of the rows."""

import pytest
import torch

from actors.kernels.summing import sum_outputs


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_same_bits_as_index_add(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(3)
    outputs = torch.randn(200, 48, generator=generator).to(dtype)
    row_index = torch.randint(0, 17, (200,), generator=generator, dtype=torch.int32)
    row_index[row_index == 5] = 6  # row 5 has no assignment
    sums = torch.full((17, 48), torch.nan)
    sum_outputs(outputs, row_index, sums)
    wanted = torch.zeros(17, 48).index_add_(0, row_index, outputs.float())
    assert torch.equal(sums, wanted)
    assert not sums[5].any()
