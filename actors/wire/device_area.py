"""Rows and sums of one link's calls in memory of a device, beside the slots of its segment.

The client allocates the area on its device and offers it to the server when it attaches; a server
on a device of the same type opens it and says so in WELCOME. Slot i of the segment then has slot i
of the area: header, ids and weights of a call stay in the segment, its rows and sums need not pass
through the host. Whoever may use a slot of the segment may use that of the area, so there is no
flow control of its own.

The client keeps an area until its server can write no more: the server may hang in the middle of a
call, and what the allocator would give to others next must not change under them (`retired_areas`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from actors.wire.device_memory import DeviceMemory, HandlePart
from actors.wire.frame import FrameError
from actors.wire.segment import MAX_SLOTS, SLOTS

ROWS_BYTES, SUMS_BYTES = 2 << 20, 4 << 20
"""Of a slot: 146 rows of 7168 bf16 values and their fp32 sums. A call that is larger goes through
the host: an area is memory that the engine's cache does not get, 48 MiB for each link."""
MAX_SLOT_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class AreaShape:
    """Room of each slot for rows and for sums."""

    slots: int = SLOTS
    rows_bytes: int = ROWS_BYTES
    sums_bytes: int = SUMS_BYTES

    @property
    def total_bytes(self) -> int:
        return self.slots * (self.rows_bytes + self.sums_bytes)

    def has_room(self, rows: int, hidden: int) -> bool:
        """Whether a call with so many rows fits a slot."""
        return 2 * rows * hidden <= self.rows_bytes and 4 * rows * hidden <= self.sums_bytes


class DeviceArea:
    """One side's view of an area. memory: uint8 [shape.total_bytes], as this side reaches it.

    fences: of each slot, recorded by the client when it wrote rows; none where the driver has none,
    and then the client waits for its device before it posts.
    """

    def __init__(
        self, driver: DeviceMemory, memory: torch.Tensor, shape: AreaShape, fences: Sequence[Any]
    ) -> None:
        self.shape, self.memory = shape, memory
        self._driver, self._fences = driver, tuple(fences)

    def rows(self, slot: int, rows: int, hidden: int) -> torch.Tensor:
        """[rows, hidden] bf16: the rows of the call in a slot."""
        at = slot * self.shape.rows_bytes
        return self._seen(at, 2 * rows * hidden, torch.bfloat16).view(rows, hidden)

    def sums(self, slot: int, rows: int, hidden: int) -> torch.Tensor:
        """[rows, hidden] fp32: the answer to it."""
        at = self.shape.slots * self.shape.rows_bytes + slot * self.shape.sums_bytes
        return self._seen(at, 4 * rows * hidden, torch.float32).view(rows, hidden)

    def _seen(self, at: int, num_bytes: int, dtype: torch.dtype) -> torch.Tensor:
        return self.memory[at : at + num_bytes].view(dtype)

    def rows_written(self, slot: int) -> None:
        """Client: the rows are on their way; call before the slot becomes POSTED."""
        if self._fences:
            self._driver.record(self._fences[slot])
        else:
            self._driver.synchronize()

    def await_rows(self, slot: int) -> None:
        """Server: what it gives to its device from now on finds the rows there."""
        if self._fences:
            self._driver.wait(self._fences[slot])

    def sums_written(self) -> None:
        """Server: returns when the sums are there; call before the slot becomes ANSWERED. An answer
        that is told earlier could still fail."""
        self._driver.synchronize()


class Offer(BaseModel):
    """What a client says of its area. memory: handle, bytes as hexadecimal text."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    device: str = Field(pattern=r"^[a-z0-9_]{1,32}$")
    slots: int = Field(gt=0, le=MAX_SLOTS)
    rows_bytes: int = Field(gt=0, le=MAX_SLOT_BYTES, multiple_of=256)
    sums_bytes: int = Field(gt=0, le=MAX_SLOT_BYTES, multiple_of=256)
    memory: tuple[bool | int | str, ...] = Field(max_length=16)
    fences: tuple[str, ...] = Field(max_length=MAX_SLOTS)


def create_area(driver: DeviceMemory, shape: AreaShape) -> tuple[DeviceArea, bytes]:
    """A new area and the offer to send. Raises RuntimeError, OSError or ValueError: the driver
    does not share."""
    memory = driver.allocate(shape.total_bytes)
    fences = [driver.fence() for _ in range(shape.slots)]
    if any(fence is None for fence in fences):
        fences = []
    offer = Offer(
        device=driver.device.type,
        slots=shape.slots,
        rows_bytes=shape.rows_bytes,
        sums_bytes=shape.sums_bytes,
        memory=tuple(
            part.hex() if isinstance(part, bytes) else part for part in driver.share(memory)
        ),
        fences=tuple(driver.share_fence(fence).hex() for fence in fences),
    )
    return DeviceArea(driver, memory, shape, fences), offer.model_dump_json().encode()


def open_area(driver: DeviceMemory, text: bytes) -> DeviceArea:
    """What a client offered, on this side.

    Raises:
        FrameError: it is no offer. ValueError: of another type of device. RuntimeError, OSError:
            the driver cannot open it.
    """
    try:
        offer = Offer.model_validate_json(text)
        handle: list[HandlePart] = [
            bytes.fromhex(part) if isinstance(part, str) else part for part in offer.memory
        ]
        fences = [bytes.fromhex(fence) for fence in offer.fences]
    except ValidationError as error:
        raise FrameError(f"offer of device memory: {error.errors()[0]['msg']}") from None
    except ValueError as error:
        raise FrameError(f"offer of device memory: {error}") from None
    if len(fences) not in (0, offer.slots):
        raise FrameError(f"offer of device memory: {len(fences)} fences for {offer.slots} slots")
    if offer.device != driver.device.type:
        raise ValueError(f"the client's memory is of {offer.device}, this is {driver.device.type}")
    shape = AreaShape(offer.slots, offer.rows_bytes, offer.sums_bytes)
    memory = driver.open(handle)
    if memory.numel() < shape.total_bytes:
        raise FrameError(f"offer of device memory: {memory.numel()} bytes for {shape}")
    return DeviceArea(driver, memory, shape, [driver.open_fence(fence) for fence in fences])
