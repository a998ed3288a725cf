"""The stand-in's driver for memory that two processes share: CPU memory under a descriptor.

A handle names a process and one of its descriptors, which another process of the same user opens
through /proc; nothing has a name that could be left behind. A fence is a word of such memory that
counts how often it was recorded. The stand-in computes at once, so a fence has nothing to wait for,
but one that was never recorded is an error in whoever waits.
"""

import mmap
import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from actors.wire.device_memory import HandlePart
from tests.devices.standin import put

WORD_BYTES = 8


@dataclass(slots=True, eq=False)
class Fence:
    word: torch.Tensor
    descriptor: int = -1


class StandInMemory:
    """See `DeviceMemory`. done: what was asked of it, in order. shared: memory by what was made."""

    def __init__(self, device: torch.device) -> None:
        self.device = torch.device(device.type, 0)
        self.done: list[str] = []
        self._descriptors: dict[int, int] = {}

    def _new(self, num_bytes: int) -> tuple[torch.Tensor, int]:
        descriptor = os.memfd_create("standin", os.MFD_CLOEXEC)
        os.ftruncate(descriptor, num_bytes)
        return _mapped(descriptor, num_bytes), descriptor

    def allocate(self, num_bytes: int) -> torch.Tensor:
        hidden, descriptor = self._new(num_bytes)
        memory = put(hidden)
        self._descriptors[id(memory)] = descriptor
        self.done.append("allocate")
        return memory

    def share(self, memory: torch.Tensor) -> Sequence[HandlePart]:
        return [os.getpid(), self._descriptors[id(memory)], b"standin", False]

    def open(self, handle: Sequence[HandlePart]) -> torch.Tensor:
        pid, descriptor, kind, _ = handle
        if kind != b"standin":
            raise ValueError(f"{kind!r} is no handle of the stand-in")
        self.done.append("open")
        return put(_opened(f"/proc/{pid}/fd/{descriptor}"))

    def fence(self) -> Fence:
        return Fence(*self._new(WORD_BYTES))

    def share_fence(self, fence: Fence) -> bytes:
        return f"{os.getpid()}/fd/{fence.descriptor}".encode()

    def open_fence(self, handle: bytes) -> Fence:
        return Fence(_opened(f"/proc/{handle.decode()}"))

    def record(self, fence: Fence) -> None:
        fence.word[0] += 1
        self.done.append("record")

    def wait(self, fence: Fence) -> None:
        if not int(fence.word[0]):
            raise RuntimeError("the fence was never recorded")
        self.done.append("wait")

    def synchronize(self) -> None:
        self.done.append("synchronize")


def _opened(path: str) -> torch.Tensor:
    descriptor = os.open(path, os.O_RDWR)
    try:
        return _mapped(descriptor, os.fstat(descriptor).st_size)
    finally:
        os.close(descriptor)


def _mapped(descriptor: int, num_bytes: int) -> torch.Tensor:
    """uint8 [num_bytes]; the mapping lives as long as the tensor."""
    return torch.frombuffer(mmap.mmap(descriptor, num_bytes), dtype=torch.uint8)
