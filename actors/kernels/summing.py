"""Add up the outputs of each row's experts: fp32, in the order of the assignments."""

import numpy as np
import torch

from native.compiled import compiled


def sum_outputs(outputs: torch.Tensor, row_index: torch.Tensor, sums: torch.Tensor) -> None:
    """sums[r] = sum of outputs[a] with row_index[a] == r, ascending a; 0 where there is none.

    outputs: [A, H] bf16 or fp32, row_index: int32 [A], sums: [R, H] fp32; all on the CPU.
    """
    if outputs.dtype is torch.bfloat16:
        bits = outputs.view(torch.int16).numpy().view(np.uint16)
        _sum_bf16(bits, row_index.numpy(), sums.numpy())
    else:
        _sum_fp32(outputs.numpy(), row_index.numpy(), sums.numpy())


@compiled()
def _sum_fp32(outputs, row_index, sums):  # type: ignore[no-untyped-def]
    sums[:] = 0.0
    for a in range(outputs.shape[0]):
        row, output = sums[row_index[a]], outputs[a]
        for h in range(row.shape[0]):
            row[h] += output[h]


@compiled()
def _sum_bf16(outputs, row_index, sums):  # type: ignore[no-untyped-def]
    sums[:] = 0.0
    for a in range(outputs.shape[0]):
        row, output = sums[row_index[a]], outputs[a]
        for h in range(row.shape[0]):
            # bf16 is the upper half of fp32; numba widens what is shifted, so it is narrowed again.
            row[h] += np.uint32(np.uint32(output[h]) << np.uint32(16)).view(np.float32)
