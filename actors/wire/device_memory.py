"""Memory of a device that two processes of one node share: the seam to a vendor's driver.

torch has the calls for NVIDIA's and AMD's devices, and the vendors' packages add theirs by the same
pattern (`_share_npu_`, `_new_shared_npu`, and so for mlu and musa), so one class serves them all. A
handle is a few numbers and byte strings that only a process of this node can open; it is sent as
JSON (`device_area`), never pickled.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

HandlePart = int | bool | bytes


class DeviceMemory(Protocol):
    """A process's way to share memory of its device. Calls raise RuntimeError, OSError or
    ValueError where the driver cannot do it.

    device: of this process; its type says whose memory can be opened.
    """

    device: torch.device

    def allocate(self, num_bytes: int) -> torch.Tensor:
        """uint8 [num_bytes] on the device."""
        ...

    def share(self, memory: torch.Tensor) -> Sequence[HandlePart]:
        """The handle of what `allocate` returned, which has to outlive all use of it."""
        ...

    def open(self, handle: Sequence[HandlePart]) -> torch.Tensor:
        """uint8: another process's memory, as tensors of this process's device."""
        ...

    def fence(self) -> Any:
        """Orders the work of two processes; None where the driver has no such thing."""
        ...

    def share_fence(self, fence: Any) -> bytes: ...

    def open_fence(self, handle: bytes) -> Any: ...

    def record(self, fence: Any) -> None:
        """The fence stands behind what this thread has given to the device so far."""
        ...

    def wait(self, fence: Any) -> None:
        """What this thread gives to the device from now on comes after the fence as it was recorded
        last. The thread itself does not wait."""
        ...

    def synchronize(self) -> None:
        """Return when the device has done what this thread gave to it."""
        ...


class TorchDeviceMemory:
    """`DeviceMemory` by torch's calls, or by those of a vendor's package that are named alike."""

    def __init__(self, device: torch.device) -> None:
        self._module = getattr(torch, device.type)
        index = device.index if device.index is not None else self._module.current_device()
        self.device = torch.device(device.type, index)

    def allocate(self, num_bytes: int) -> torch.Tensor:
        return torch.empty(num_bytes, dtype=torch.uint8, device=self.device)

    def share(self, memory: torch.Tensor) -> Sequence[HandlePart]:
        share = getattr(memory.untyped_storage(), f"_share_{self.device.type}_")
        handle: list[HandlePart] = list(share())
        return handle[1:]  # the device's number here means nothing elsewhere

    def open(self, handle: Sequence[HandlePart]) -> torch.Tensor:
        open_storage = getattr(torch.UntypedStorage, f"_new_shared_{self.device.type}")
        storage = open_storage(self.device.index, *handle)
        return torch.empty(0, dtype=torch.uint8, device=self.device).set_(storage)

    def fence(self) -> Any:
        try:
            return self._module.Event(interprocess=True)
        except (TypeError, RuntimeError):
            return None

    def share_fence(self, fence: Any) -> bytes:
        handle: bytes = fence.ipc_handle()
        return handle

    def open_fence(self, handle: bytes) -> Any:
        return self._module.Event.from_ipc_handle(self.device, handle)

    def record(self, fence: Any) -> None:
        fence.record(self._module.current_stream(self.device))

    def wait(self, fence: Any) -> None:
        self._module.current_stream(self.device).wait_event(fence)

    def synchronize(self) -> None:
        self._module.current_stream(self.device).synchronize()


DRIVERS: dict[str, Callable[[torch.device], DeviceMemory]] = {}
"""By torch's device type, of vendors for whom `TorchDeviceMemory` does not do."""


def device_memory_of(device: torch.device) -> DeviceMemory | None:
    """How this process shares memory of `device`; None: the device's package has no calls for it,
    or it is a CPU."""
    kind = device.type
    if kind in DRIVERS:
        return DRIVERS[kind](device)
    calls = (f"_share_{kind}_", f"_new_shared_{kind}")
    if kind == "cpu" or not all(hasattr(torch.UntypedStorage, call) for call in calls):
        return None
    return TorchDeviceMemory(device)
