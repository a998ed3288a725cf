"""Streams and pinned memory of a device: the seam to its driver.

What a thread gives to a device goes to its current stream, in order. A side stream is another one:
copies on it run beside computing, if their memory on the host is pinned. torch has both for all
devices alike (`torch.Stream`, `torch.Event`, pinned memory of the process's accelerator); a vendor
whose package needs other calls adds them to `STREAMS`. A device that has none is served without.
"""

from collections.abc import Callable
from types import TracebackType
from typing import Any, Protocol

import torch

PROBE_BYTES = 1 << 12


class Event(Protocol):
    """A place in the order of a stream."""

    def synchronize(self) -> None:
        """Return when the device has come so far."""
        ...


class Stream(Protocol):
    """In a `with` block this thread's work goes here."""

    def __enter__(self) -> object: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
        /,
    ) -> None: ...

    def record_event(self) -> Event:
        """Behind all that was given to this stream so far."""
        ...

    def wait_event(self, event: Event, /) -> None:
        """What is given to this stream from now on comes after the event; nobody waits here."""
        ...


class DeviceStreams(Protocol):
    """What copies beside computing need of a device. Calls raise RuntimeError where it has none."""

    device: torch.device

    def pinned(self, num_bytes: int) -> torch.Tensor:
        """uint8 [num_bytes] of the host's memory that the device copies from and to by itself."""
        ...

    def stream(self) -> Stream:
        """A new side stream."""
        ...

    def current(self) -> Stream:
        """This thread's."""
        ...


class TorchStreams:
    """`DeviceStreams` by the calls that torch has for every device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def pinned(self, num_bytes: int) -> torch.Tensor:
        return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True)

    def stream(self) -> Stream:
        made: Any = torch.Stream(self.device)  # torch's annotations leave out `with`
        stream: Stream = made
        return stream

    def current(self) -> Stream:
        found: Any = torch.accelerator.current_stream(self.device)
        stream: Stream = found
        return stream


STREAMS: dict[str, Callable[[torch.device], DeviceStreams]] = {}
"""By torch's device type, of vendors for whom `TorchStreams` does not do."""


def streams_of(device: torch.device) -> tuple[DeviceStreams | None, str]:
    """How copies to and from `device` run beside computing; None and why not where they cannot.

    Tried, not looked up: a package may have the names and not the calls.
    """
    if device.type == "cpu":
        return None, ""
    try:
        streams = STREAMS.get(device.type, TorchStreams)(device)
        _try_out(streams)
    except (RuntimeError, TypeError, ValueError, AttributeError, AssertionError) as error:
        said = str(error).strip().splitlines()
        return None, said[0] if said else type(error).__name__
    return streams, ""


def _try_out(streams: DeviceStreams) -> None:
    """Copy there on a side stream and back on the current one."""
    host = streams.pinned(PROBE_BYTES)
    host[:PROBE_BYTES] = 1
    side = streams.stream()
    with side:
        there = torch.zeros(PROBE_BYTES, dtype=torch.uint8, device=streams.device)
        there.copy_(host, non_blocking=True)
        arrived = side.record_event()
    streams.current().wait_event(arrived)
    if not bool((there.cpu() == 1).all()):
        raise RuntimeError("a copy on a side stream does not arrive")
