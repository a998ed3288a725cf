"""Expert calls of one layer, from several clients, as one batch for the kernel.

Indices are checked while they are copied out of the clients' buffers, which for shared memory the
client could still write to: native kernels read whatever memory a wrong index points at. The bf16
rows of a single call stay where they are. The arrays are used again from batch to batch.
"""

from collections.abc import Sequence

import numpy as np
import torch

from actors.dispatch.backend import bf16_tensor
from actors.wire.body import Bits16, CallBody, Floats, Fp8Rows, Ints, RowsElsewhere
from actors.wire.connections import Request
from actors.wire.fp8_rows import decode_rows
from native.compiled import compiled

BAD_ROW, BAD_EXPERT = 1, 2


def fitting(calls: Sequence[Request], most: int) -> list[list[Request]]:
    """`calls` in their order as batches of at most `most` rows and assignments; a call that has
    more is a batch by itself."""
    batches: list[list[Request]] = []
    size = most
    for call in calls:
        own = max(call.header.rows, call.header.assignments)
        if size + own > most:
            batches.append([])
            size = 0
        batches[-1].append(call)
        size += own
    return batches


def row_pieces(row_index: Ints, num_rows: int, most: int) -> list[tuple[int, int]]:
    """(first, end) of consecutive rows with at most `most` rows and assignments; a row that has
    more is a piece by itself, since its sum is not divided. row_index: [A]."""
    counts = np.maximum(np.bincount(row_index, minlength=num_rows), 1)
    ends = np.cumsum(counts)
    pieces, first = [], 0
    while first < num_rows:
        done = int(ends[first - 1]) if first else 0
        end = max(first + 1, int(np.searchsorted(ends, done + most, side="right")))
        pieces.append((first, end))
        first = end
    return pieces


class MergedCalls:
    """Add calls, then take the tensors; `clear` starts the next batch."""

    def __init__(self, hidden: int, num_experts: int) -> None:
        self._hidden, self._num_experts = hidden, num_experts
        self._rows: Bits16 = np.empty((0, hidden), np.uint16)
        self._indices = np.empty((2, 0), np.int32)
        self._weights = np.empty(0, np.float32)
        self._sums: Floats = np.empty((0, hidden), np.float32)
        self.clear()

    def clear(self) -> None:
        self._parts: list[Bits16 | Fp8Rows] = []
        self.num_rows = 0
        self.assignments = 0

    def add(self, body: CallBody) -> str:
        """Take one call in; returns what is wrong with it, "" if nothing is."""
        rows, count = len(body.rows), len(body.experts)
        if not rows or not count:
            return "an empty call"
        first, end = self.assignments, self.assignments + count
        self._reserve(end)
        fault = copy_checked(
            body.row_index, body.experts, body.weights, rows, self._num_experts, self.num_rows,
            self._indices[:, first:end], self._weights[first:end],
        )  # fmt: skip
        if fault == BAD_ROW:
            return f"row_index out of [0, {rows})"
        if fault == BAD_EXPERT:
            return f"expert out of [0, {self._num_experts})"
        if not isinstance(body.rows, RowsElsewhere):
            self._parts.append(body.rows)
        self.num_rows += rows
        self.assignments = end
        return ""

    def _reserve(self, assignments: int) -> None:
        if assignments > len(self._weights):
            indices = np.empty((2, 2 * assignments), np.int32)
            weights = np.empty(2 * assignments, np.float32)
            indices[:, : self.assignments] = self._indices[:, : self.assignments]
            weights[: self.assignments] = self._weights[: self.assignments]
            self._indices, self._weights = indices, weights

    @property
    def rows(self) -> torch.Tensor:
        """[R, H] bf16: the rows of all calls, in the order they were added; none of them are
        elsewhere."""
        first_part = self._parts[0]
        if len(self._parts) == 1 and not isinstance(first_part, Fp8Rows):
            return bf16_tensor(first_part)
        if self.num_rows > len(self._rows):
            self._rows = np.empty((2 * self.num_rows, self._hidden), np.uint16)
        first = 0
        for part in self._parts:
            target = self._rows[first : first + len(part)]
            if isinstance(part, Fp8Rows):
                decode_rows(part.codes, part.scales, target)
            else:
                target[:] = part
            first += len(part)
        return bf16_tensor(self._rows[:first])

    @property
    def sums(self) -> Floats:
        """[R, H], for the sums of the rows of all calls."""
        if self.num_rows > len(self._sums):
            self._sums = np.empty((2 * self.num_rows, self._hidden), np.float32)
        return self._sums[: self.num_rows]

    @property
    def row_index(self) -> Ints:
        """[A] into `rows`."""
        return self._indices[0, : self.assignments]

    @property
    def experts(self) -> Ints:
        """[A]."""
        return self._indices[1, : self.assignments]

    @property
    def weights(self) -> Floats:
        """[A]."""
        return self._weights[: self.assignments]

    @property
    def assigned(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """`row_index`, `experts` and `weights` as tensors of the same memory."""
        return (
            torch.from_numpy(self.row_index),
            torch.from_numpy(self.experts),
            torch.from_numpy(self.weights),
        )


@compiled()
def copy_checked(  # type: ignore[no-untyped-def]
    row_index, experts, given_weights, rows, num_experts, first_row, indices, weights
):
    """indices[0] = row_index + first_row, indices[1] = experts; 0, BAD_ROW or BAD_EXPERT."""
    for i in range(experts.shape[0]):
        row, expert = row_index[i], experts[i]
        if row < 0 or row >= rows:
            return BAD_ROW
        if expert < 0 or expert >= num_experts:
            return BAD_EXPERT
        indices[0, i] = row + first_row
        indices[1, i] = expert
        weights[i] = given_weights[i]
    return 0


@compiled()
def count_experts(counts, experts):  # type: ignore[no-untyped-def]
    """counts[e] += how often e is in experts; counts: int64 [E]."""
    for i in range(experts.shape[0]):
        counts[experts[i]] += 1
