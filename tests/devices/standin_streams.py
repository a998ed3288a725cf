"""The stand-in's streams and pinned memory: copies that are as late as they may be.

What is given to the stand-in is computed at once, but for copies on a side stream, within the
device or from or to pinned memory: they wait until somebody waits for an event behind them. So
memory that is read before its copy is waited for has old numbers, and memory that is written again
before that gives wrong ones: what a device does now and then happens every time.
"""

import threading
from collections.abc import Callable
from types import TracebackType

import torch

from actors.kernels.streams import STREAMS, DeviceStreams
from tests.devices import standin

_local = threading.local()


class StandInEvent:
    """Behind the first `count` copies of a stream."""

    def __init__(self, stream: "StandInStream") -> None:
        self.stream, self.count = stream, stream.given

    def synchronize(self) -> None:
        self.stream.run_until(self.count)


class StandInStream:
    """See `Stream`. A main one has nothing that waits."""

    def __init__(self, streams: "StandInStreams", main: bool = False) -> None:
        self.given, self._done = 0, 0
        self._streams, self._main = streams, main
        self._waiting: list[Callable[[], None]] = []
        self._running = threading.RLock()

    def __enter__(self) -> "StandInStream":
        _local.stack = [*getattr(_local, "stack", []), self]
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        _local.stack = _local.stack[:-1]

    def give(self, work: Callable[[], None]) -> None:
        with self._running:
            self._waiting.append(work)
            self.given += 1

    def run_until(self, count: int) -> None:
        with self._running:
            while self._done < count:
                work = self._waiting.pop(0)
                self._done += 1
                work()

    def record_event(self) -> StandInEvent:
        return StandInEvent(self)

    def wait_event(self, event: StandInEvent) -> None:  # type: ignore[override]
        if self._main:
            event.synchronize()  # its work is done when it is given, so what it waits for is too
        else:
            self.give(event.synchronize)


class StandInStreams:
    """See `DeviceStreams`. deferred: copies that were not done at once, of all of these."""

    deferred = 0

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._main = StandInStream(self, main=True)

    def pinned(self, num_bytes: int) -> torch.Tensor:
        memory = torch.zeros(num_bytes, dtype=torch.uint8)
        PINNED.add(memory.untyped_storage().data_ptr())
        KEPT.append(memory)
        return memory

    def stream(self) -> StandInStream:
        return StandInStream(self)

    def current(self) -> StandInStream:
        stack = getattr(_local, "stack", [])
        found: StandInStream = stack[-1] if stack else self._main
        return found


PINNED: set[int] = set()
KEPT: list[torch.Tensor] = []
"""Addresses would be others' memory, once what was pinned is gone."""


def defer(source: torch.Tensor, target: torch.Tensor) -> bool:
    """Take charge of a copy within the device, or from or to pinned memory, on a side stream."""
    on_host = [one for one in (source, target) if one.device.type == "cpu"]
    stack = getattr(_local, "stack", [])
    if not stack or any(one.untyped_storage().data_ptr() not in PINNED for one in on_host):
        return False
    StandInStreams.deferred += 1
    read, written = standin.take(source), standin.take(target)
    stack[-1].give(lambda: written.copy_(read))
    return True


def catch_up() -> None:
    """An operator on a side stream comes after the copies that were given to it."""
    for stream in getattr(_local, "stack", [])[-1:]:
        stream.run_until(stream.given)


def install() -> None:
    """For this process's stand-in, which has none of these else."""
    make: Callable[[torch.device], DeviceStreams] = StandInStreams
    STREAMS[standin.NAME] = make
    standin.Hooks.defer = staticmethod(defer)
    standin.Hooks.before_operator = staticmethod(catch_up)
