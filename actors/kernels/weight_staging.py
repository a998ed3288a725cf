"""Experts' weights to a device through two pinned buffers, on whatever stream loads.

The next part is read into one buffer while the device copies the other. A buffer is written again
only after its copy has ended.
"""

import torch

from actors.experts.checkpoint import ExpertTensors
from actors.kernels.streams import DeviceStreams, Event

BUFFERS = 2
BUFFER_BYTES = 4 << 20
"""Large enough that a copy's start does not count: at 25 GB/s it takes 0.17 ms."""


class WeightStaging:
    """For one thread at a time."""

    def __init__(self, streams: DeviceStreams, buffer_bytes: int = BUFFER_BYTES) -> None:
        self._streams = streams
        self._buffers = [streams.pinned(buffer_bytes) for _ in range(BUFFERS)]
        self._copied: list[Event | None] = [None] * BUFFERS
        self._next = 0

    def to_device(self, expert: ExpertTensors) -> ExpertTensors:
        """Copies of its tensors; complete for what this thread's stream does from now on."""
        return expert.map(self._copy)

    def _copy(self, tensor: torch.Tensor) -> torch.Tensor:
        source = tensor.contiguous()
        there = torch.empty(source.shape, dtype=source.dtype, device=self._streams.device)
        if source.dim() == 0 or not source.numel():
            return there.copy_(source)
        given, taken = (one.view(-1).view(torch.uint8) for one in (source, there))
        size = len(self._buffers[0])
        for first in range(0, len(given), size):
            self._part(given[first : first + size], taken[first : first + size])
        return there

    def _part(self, given: torch.Tensor, taken: torch.Tensor) -> None:
        number, self._next = self._next, (self._next + 1) % BUFFERS
        before = self._copied[number]
        if before is not None:
            before.synchronize()
        buffer = self._buffers[number][: len(given)]
        buffer.copy_(given)
        taken.copy_(buffer, non_blocking=True)
        self._copied[number] = self._streams.current().record_event()
