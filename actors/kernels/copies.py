"""How a kernel copies to and from its device: through pinned memory beside computing, or not."""

import contextlib
import logging
from typing import ClassVar

import torch

from actors.experts.checkpoint import ExpertTensors
from actors.kernels.row_staging import RowStaging, staging_bytes
from actors.kernels.streams import DeviceStreams, Stream, streams_of
from actors.kernels.weight_staging import WeightStaging

log = logging.getLogger(__name__)


class _Done:
    """A call that was finished before it was asked for."""

    def finish(self) -> None: ...


DONE = _Done()


class DeviceCopies:
    """Of one kernel.

    rows: where calls are staged; None where copies wait for computing. problem: why, to be put
    behind what a kernel says of itself; "" on a CPU, which copies nothing, and where all is well.
    """

    _told: ClassVar[set[str]] = set()

    def __init__(self, streams: DeviceStreams | None = None, problem: str = "") -> None:
        self.problem = problem
        self.rows: RowStaging | None = None
        self._weights: WeightStaging | None = None
        self._stream: Stream | None = None
        self._streams = streams
        if streams is not None:
            self.rows = RowStaging(streams, staging_bytes())
            self._weights = WeightStaging(streams)
            self._stream = streams.stream()

    @classmethod
    def of(cls, device: torch.device) -> "DeviceCopies":
        """As far as the device can."""
        streams, reason = streams_of(device)
        if streams is not None or not reason:
            try:
                return cls(streams)
            except RuntimeError as error:  # so much memory cannot be pinned
                reason = str(error).strip().splitlines()[0]
        if device.type not in cls._told:
            cls._told.add(device.type)
            log.warning(
                "%s: rows and weights are copied from pageable memory, and copies wait for "
                "computing: %s", device, reason,
            )  # fmt: skip
        return cls(problem=f", copies from pageable memory ({reason})")

    def loading(self) -> contextlib.AbstractContextManager[object]:
        """This thread's work for the device goes beside what others compute there."""
        return contextlib.nullcontext() if self._stream is None else self._stream

    def to_device(self, expert: ExpertTensors) -> ExpertTensors:
        """Native tensors where `pack` of the operator finds them; as they are where it copies."""
        return expert if self._weights is None else self._weights.to_device(expert)

    def settle(self) -> None:
        """Return when the device has done what this thread gave it."""
        if self._streams is not None:
            self._streams.current().record_event().synchronize()
