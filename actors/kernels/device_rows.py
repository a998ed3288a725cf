"""Rows of a call on a device other than the CPU: there, spread, computed, summed, and back.

Rows travel once each way, however many experts each goes through: [R, H] bf16 there, [R, H] fp32
back, and the assignments as one [3, A] array. Where the device has pinned memory and streams,
copies go through a slot of `RowStaging`: a call is started, and the next one may be before it is
finished. Else they are plain ones from pageable memory; the only wait for the device is the copy of
the sums. Rows that are on a device already, because engine and shard share its memory, and sums
that go there, are not copied through the host.
"""

import contextlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from actors.kernels.base import ExpertOperator
from actors.kernels.row_staging import RowStaging, Slot


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
    _check_rows(row_index, len(rows))
    device = operator.device
    with _current(device):
        there = assignment_array(row_index, slots, weights).to(device)
        of_rows, in_slots, by = there
        spread = rows.to(device).index_select(0, of_rows)
        outputs = operator.run(held, spread, in_slots, by.view(torch.float32))
        # The device has its work by now: the host sorts rows in the meantime.
        nth = nth_assignments(row_index, len(rows)).to(device)
        sums.copy_(sum_in_order(outputs, nth))


@dataclass(frozen=True, slots=True)
class StagedCall:
    """A call that the device has. held: what it reads, which is not to be freed before its end."""

    slot: Slot
    sums: torch.Tensor
    held: Any

    def finish(self) -> None:
        """Return when the sums are there."""
        self.slot.wait(self.sums)


def start_on_device(
    staging: RowStaging,
    operator: ExpertOperator,
    held: Any,
    rows: torch.Tensor,
    row_index: torch.Tensor,
    slots: torch.Tensor,
    weights: torch.Tensor,
    sums: torch.Tensor,
) -> StagedCall | None:
    """As `compute_on_device` for rows and sums on the CPU, but `sums` are there once the call is
    finished; the other arguments may be changed before. None, and nothing done: the call is larger
    than what is pinned, or no slot is free."""
    _check_rows(row_index, len(rows))
    nth = nth_assignments(row_index, len(rows))
    slot = staging.take(len(rows), rows.shape[1], len(row_index), len(nth))
    if slot is None:
        return None
    try:
        with _current(operator.device):
            there = slot.send(rows, assignment_array(row_index, slots, weights), nth)
            of_rows, in_slots, by = there.assignments
            spread = there.rows.index_select(0, of_rows)
            outputs = operator.run(held, spread, in_slots, by.view(torch.float32))
            slot.fetch(sum_in_order(outputs, there.nth))
    except BaseException:
        slot.abandon()
        raise
    return StagedCall(slot, sums, held)


def assignment_array(
    row_index: torch.Tensor, slots: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """int32 [3, A]; weights as their bits."""
    return torch.stack([row_index, slots, weights.view(torch.int32)])


def _check_rows(row_index: torch.Tensor, num_rows: int) -> None:
    low, high = torch.aminmax(row_index)
    if int(low) < 0 or int(high) >= num_rows:
        raise IndexError(f"row_index out of [0, {num_rows})")


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
