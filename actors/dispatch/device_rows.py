"""Rows and sums of a call that stay on the engine's device, for links that share its memory.

What compiled code does in the host's memory (`posting`, `adding`) is done here by torch's operators
on the device: rows are gathered into the link's area, sums are added up from there. In the same
order, in fp32, rounded to bf16 once: the bits are those of the other way.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from actors.dispatch.adding import NO_NUMBER, NOT_ALL
from actors.dispatch.shard_links import CODING, LinkTable
from actors.wire import slots as part
from actors.wire.body import rows_of, sums_of
from actors.wire.device_area import DeviceArea
from actors.wire.frame import HEADER_BYTES, RowCoding
from actors.wire.layout import DEVICE, sum_bytes
from actors.wire.segment import Segment, slot_of

Ints = npt.NDArray[np.int32]
Place = tuple[Segment, DeviceArea | None]
"""Where a part's answer is."""


class BatchRows:
    """Rows [T, H] bf16 of a batch. there: where the engine has them, contiguous."""

    def __init__(self, rows: torch.Tensor) -> None:
        self.there = rows.contiguous()
        self._host: torch.Tensor | None = self.there if rows.device.type == "cpu" else None

    def __len__(self) -> int:
        return len(self.there)

    @property
    def host(self) -> torch.Tensor:
        """On the CPU; copied when that is asked for the first time."""
        if self._host is None:
            self._host = self.there.cpu()
        return self._host

    @property
    def on_host(self) -> bool:
        return self.there.device.type == "cpu"


def slots_for(table: LinkTable, first_row: Ints, rows: BatchRows) -> npt.NDArray[np.int64]:
    """`table.slots` with the coding of each shard's part of this batch: DEVICE where the rows are
    on the device, the link shares its memory, and they fit a slot of it."""
    if not table.shares or rows.on_host:
        return table.slots
    slots, hidden = table.slots.copy(), rows.there.shape[1]
    for shard, link in enumerate(table.links):
        count = int(first_row[shard + 1] - first_row[shard])
        area = link.area if link is not None else None
        if area is not None and count and area.shape.has_room(count, hidden):
            slots[shard, CODING] = RowCoding.DEVICE
    return slots


def through_host(slots: npt.NDArray[np.int64], first_row: Ints) -> bool:
    """Whether some shard gets rows from the host's memory."""
    there = slots[:, CODING] == DEVICE
    return bool(np.any(np.diff(first_row[: len(slots) + 1])[~there]))


def gather(rows: BatchRows, indices: Ints, area: DeviceArea, slot: int) -> None:
    """Copy rows of the batch into a slot of an area, for the call that is posted next."""
    there = torch.from_numpy(indices).to(rows.there.device)
    room = area.rows(slot, len(indices), rows.there.shape[1])
    room.copy_(rows.there.index_select(0, there))
    area.rows_written(slot)


def add_up(
    parts: part.Parts,
    places: Sequence[Place],
    first_row: Ints,
    rows: Ints,
    result: torch.Tensor,
    device: torch.device,
) -> int:
    """As `adding.add_up`, for answers on `device` and on the host; result: [T, H] bf16."""
    compute_us = 0
    for status, took_us in parts[:, [part.STATUS, part.COMPUTE_US]].tolist():
        if status == part.GOOD:
            compute_us = max(compute_us, took_us)
        elif status != part.EMPTY:
            return NOT_ALL
    total = torch.zeros(result.shape, dtype=torch.float32, device=device)
    for number, place in enumerate(places):
        first, end = first_row[number], first_row[number + 1]
        if parts[number, part.STATUS] == part.GOOD and end > first:
            where = torch.from_numpy(rows[first:end]).to(device)
            total.index_add_(0, where, _sums(parts[number], place, int(end - first), total))
    result.copy_(total.to(torch.bfloat16))
    if not bool(are_finite(total).all()):
        return NO_NUMBER - compute_us
    return compute_us


def are_finite(values: torch.Tensor) -> torch.Tensor:
    """bool, of each: by operators that every device has; what is infinite or no number is none
    times 0 either."""
    return values * 0 == 0


def _sums(of: npt.NDArray[np.int64], place: Place, rows: int, like: torch.Tensor) -> torch.Tensor:
    """fp32 [rows, H] of one answer, on the device of `like`."""
    segment, area = place
    hidden, coding, slot = like.shape[1], int(of[part.CODING]), slot_of(int(of[part.STATE]))
    if coding == DEVICE:
        assert area is not None
        return area.sums(slot, rows, hidden)
    body = segment.answer(slot)[HEADER_BYTES : HEADER_BYTES + rows * sum_bytes(hidden, coding)]
    if coding == RowCoding.FP8:
        bits = torch.from_numpy(rows_of(body, rows, hidden).view(np.int16).copy())
        return bits.view(torch.bfloat16).float().to(like.device)
    return torch.from_numpy(sums_of(body, rows, hidden).copy()).to(like.device)
