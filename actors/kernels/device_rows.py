"""Rows of a call on a device other than the CPU: there, spread, computed, summed, and back.

Rows travel once each way, however many experts each goes through: [R, H] bf16 there, [R, H] fp32
back, and the assignments as one [3, A] array. Copies are plain ones from pageable memory; the only
wait for the device is the copy of the sums. Rows that are on a device already, because engine and
shard share its memory, and sums that go there, are not copied through the host.
"""

import contextlib
from typing import Any

import numpy as np
import torch

from actors.kernels.base import ExpertOperator


def compute_on_device(
    operator: ExpertOperator,
    held: Any,
    rows: torch.Tensor,
    row_index: torch.Tensor,
    slots: torch.Tensor,
    weights: torch.Tensor,
    sums: torch.Tensor,
) -> None:
    """Write the weighted partial sums [R, H] fp32 to `sums`.

    Arguments as `ExpertKernel.compute` has them; slots int32 [A] instead of experts. rows, sums: on
    the CPU or on a device.
    Same bits as `sum_outputs` over the same outputs.

    Raises:
        IndexError: a row_index is not in [0, R). Checked here, since a device would fail for good.
    """
    low, high = torch.aminmax(row_index)
    if int(low) < 0 or int(high) >= len(rows):
        raise IndexError(f"row_index out of [0, {len(rows)})")
    device = operator.device
    with _current(device):
        there = torch.stack([row_index, slots, weights.view(torch.int32)]).to(device)
        spread = rows.to(device).index_select(0, there[0])
        outputs = operator.run(held, spread, there[1], there[2].view(torch.float32))
        # The device has its work by now: the host sorts rows in the meantime.
        nth = nth_assignments(row_index, len(rows)).to(device)
        sums.copy_(sum_in_order(outputs, nth))


def nth_assignments(row_index: torch.Tensor, num_rows: int) -> torch.Tensor:
    """int32 [N, R] from row_index int32 [A] on the CPU: row r's n-th assignment in ascending order,
    A where it has no more; N is the most assignments of any row."""
    indices = row_index.numpy()
    order = np.argsort(indices, kind="stable").astype(np.int32)
    counts = np.bincount(indices, minlength=num_rows)
    starts = np.cumsum(counts) - counts
    nth = np.full((int(counts.max()), num_rows), len(indices), np.int32)
    sorted_rows = indices[order]
    nth[np.arange(len(indices)) - starts[sorted_rows], sorted_rows] = order
    return torch.from_numpy(nth)


def sum_in_order(outputs: torch.Tensor, nth: torch.Tensor) -> torch.Tensor:
    """[R, H] fp32: outputs [A, H] (bf16 or fp32) added up by `nth_assignments`, first to last.

    One addition after the other, by operators every device has; `index_add_` would add in whatever
    order its threads come.
    """
    padded = torch.cat([outputs, outputs.new_zeros(1, outputs.shape[1])])
    sums = outputs.new_zeros((nth.shape[1], outputs.shape[1]), dtype=torch.float32)
    for assignments in nth:
        sums += padded.index_select(0, assignments)
    return sums


def _current(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Triton launches on the thread's current device, not on its tensors'."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
