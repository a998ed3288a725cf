"""Rows to a device and sums back through pinned memory, beside what the device computes.

A call takes a slot: pinned memory of the host and as much on the device, used again by later calls.
Its rows, assignments and their order are written there, one copy on a stream of their own takes
them to the device, and computing waits for that copy on the device, not on the host. The sums go
back on a third stream. With two slots the copies of a call run while another call is computed.

A slot is free again when its sums have come: they come after the computing, which comes after the
copy there, so nothing on the device reads or writes the slot any more. Slots grow to the largest
call they had, up to their part of `staging_bytes`; what is larger is copied without.
"""

import contextlib
from dataclasses import dataclass

import psutil
import torch

from actors.kernels.streams import DeviceStreams, Event

SLOTS = 2
"""Calls on their way: one that computes, and one whose rows are copied meanwhile."""
STAGING_SHARE = 1 / 64
"""Of the host's free memory: pinned memory cannot be swapped, and others want the host too."""
MOST_STAGING_BYTES = 256 << 20
"""In all slots: 3,120 rows of 7168 values in each."""
ALIGNMENT = 256
FIRST_BYTES = 1 << 20


def staging_bytes() -> int:
    """What all slots of one kernel may pin."""
    free = psutil.virtual_memory().available
    return min(MOST_STAGING_BYTES, int(free * STAGING_SHARE))


@dataclass(frozen=True, slots=True)
class RowsThere:
    """A call's arrays on the device: rows [R, H] bf16, assignments int32 [3, A] (row, slot, weight
    as its bits), nth int32 [N, R] of `nth_assignments`."""

    rows: torch.Tensor
    assignments: torch.Tensor
    nth: torch.Tensor


class RowStaging:
    """For one thread. most_bytes: pinned in all."""

    def __init__(self, streams: DeviceStreams, most_bytes: int) -> None:
        self.streams = streams
        self._most_bytes = most_bytes // SLOTS
        self._to_device, self._to_host = streams.stream(), streams.stream()
        self._free = [Slot(self) for _ in range(SLOTS)]

    def take(self, rows: int, hidden: int, assignments: int, most_of_a_row: int) -> "Slot | None":
        """A slot with room for such a call; None where it is too large or no slot is free."""
        there = _rounded(2 * rows * hidden) + _rounded(12 * assignments)
        there += _rounded(4 * most_of_a_row * rows)
        back = 4 * rows * hidden
        if not self._free or there + back > self._most_bytes:
            return None
        slot = self._free.pop()
        try:
            slot.make_room(there, back)
        except RuntimeError:  # no more memory can be pinned
            self._most_bytes = 0
            self._free.append(slot)
            return None
        return slot

    def give_back(self, slot: "Slot") -> None:
        self._free.append(slot)


class Slot:
    """One call's memory on both sides."""

    def __init__(self, staging: RowStaging) -> None:
        self._staging = staging
        self._there_host = self._there = self._back_host = torch.empty(0, dtype=torch.uint8)
        self._last: Event | None = None
        self._sums: torch.Tensor | None = None

    def make_room(self, there: int, back: int) -> None:
        streams = self._staging.streams
        if there > len(self._there_host):
            size = max(FIRST_BYTES, 1 << (there - 1).bit_length())
            host = streams.pinned(size)
            # Of the copying stream, so that it does not write to what others have just freed.
            with self._staging._to_device:
                there_memory = torch.empty(size, dtype=torch.uint8, device=streams.device)
            self._there_host, self._there = host, there_memory
        if back > len(self._back_host):
            self._back_host = streams.pinned(max(FIRST_BYTES, 1 << (back - 1).bit_length()))

    def send(self, rows: torch.Tensor, assignments: torch.Tensor, nth: torch.Tensor) -> RowsThere:
        """Copy them to the device; what the current stream does from now on finds them there."""
        arrays, at, places = (rows, assignments, nth), 0, []
        for array in arrays:
            _seen(self._there_host, at, array.dtype, array.shape).copy_(array)
            places.append(at)
            at += _rounded(array.nbytes)
        copying = self._staging._to_device
        with copying:
            self._there[:at].copy_(self._there_host[:at], non_blocking=True)
            self._last = copying.record_event()
        self._staging.streams.current().wait_event(self._last)
        return RowsThere(*(
            _seen(self._there, place, array.dtype, array.shape)
            for place, array in zip(places, arrays, strict=True)
        ))  # fmt: skip

    def fetch(self, sums: torch.Tensor) -> None:
        """Copy what the current stream makes, `sums` [R, H] fp32, to the host."""
        made = self._staging.streams.current().record_event()
        copying = self._staging._to_host
        copying.wait_event(made)
        with copying:
            back = _seen(self._back_host, 0, torch.float32, sums.shape)
            back.copy_(sums, non_blocking=True)
            self._last = copying.record_event()
        self._sums = sums  # or its memory were others' before it is copied

    def wait(self, out: torch.Tensor) -> None:
        """Return when what was fetched is in `out`; the slot is free then, or if that fails."""
        try:
            assert self._last is not None
            self._last.synchronize()
            out.copy_(_seen(self._back_host, 0, torch.float32, out.shape))
        finally:
            self._end()

    def abandon(self) -> None:
        """The call failed between `send` and `fetch`."""
        with contextlib.suppress(RuntimeError):  # the device may have failed for good
            if self._last is not None:
                self._last.synchronize()
            self._staging.streams.current().record_event().synchronize()
        self._end()

    def _end(self) -> None:
        self._last = self._sums = None
        self._staging.give_back(self)


def _seen(memory: torch.Tensor, at: int, dtype: torch.dtype, shape: torch.Size) -> torch.Tensor:
    size = shape.numel() * dtype.itemsize
    return memory[at : at + size].view(dtype).view(shape)


def _rounded(num_bytes: int) -> int:
    return -(-num_bytes // ALIGNMENT) * ALIGNMENT
