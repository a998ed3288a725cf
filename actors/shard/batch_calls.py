"""A merged batch as calls of the kernel: one, or pieces of whole rows if it is too large.

On a device that copies beside computing, a piece is started while the one before computes.
"""

import numpy as np
import torch

from actors.kernels.base import ExpertKernel, OverlappingKernel, StartedCall
from actors.shard.merging import MergedCalls, row_pieces


def run_batch(
    kernel: ExpertKernel,
    layer: int,
    batch: MergedCalls,
    rows: torch.Tensor,
    out: torch.Tensor,
    most_assignments: int,
) -> None:
    """The sums [R, H] of `rows` into `out`. most_assignments: rows and assignments of one call."""
    if max(batch.num_rows, batch.assignments) <= most_assignments:
        kernel.compute(layer, rows, *batch.assigned, out)
        return
    before: StartedCall | None = None
    try:
        for first, end in row_pieces(batch.row_index, batch.num_rows, most_assignments):
            inside = np.flatnonzero((batch.row_index >= first) & (batch.row_index < end))
            if not len(inside):
                out[first:end] = 0.0
                continue
            assigned = (
                torch.from_numpy(batch.row_index[inside] - np.int32(first)),
                torch.from_numpy(batch.experts[inside]),
                torch.from_numpy(batch.weights[inside]),
            )
            started = _start(kernel, layer, rows[first:end], assigned, out[first:end])
            ended, before = before, started
            if ended is not None:
                ended.finish()
    finally:
        if before is not None:
            before.finish()


def _start(
    kernel: ExpertKernel,
    layer: int,
    rows: torch.Tensor,
    assigned: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    out: torch.Tensor,
) -> StartedCall | None:
    """None: it is finished."""
    if isinstance(kernel, OverlappingKernel) and kernel.overlaps:
        return kernel.start(layer, rows, *assigned, out)
    kernel.compute(layer, rows, *assigned, out)
    return None
