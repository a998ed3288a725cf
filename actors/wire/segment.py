"""The segment of one link: a control page and a few slots, one call in each.

  control page   u32 words: layout version, slots, who sleeps, state of each slot
  slot           request header 64 B | request body | answer header 64 B | answer body

A slot's state goes FREE -> POSTED (client) -> TAKEN (server) -> ANSWERED (server) -> FREE (client).
A shared segment is a memfd that the client makes, seals against resizing and sends over the link's
Unix socket: it has no name, so nothing is left behind whoever dies. A private segment is memory of
the client alone, and its transport does what the server would do: it takes what is posted, sends
it, and puts the answers that it receives where they belong. Pages that were never used take no
memory. Slots are taken lowest first, so that one call at a time stays in the same warm pages.
"""

import fcntl
import mmap
import os
from dataclasses import dataclass

import numpy as np

from actors.wire.frame import HEADER_BYTES, MAX_BODY_BYTES, FrameError
from native.atomics import Words, find, observe, publish

LAYOUT_VERSION = 1
PAGE_BYTES = 4096
SLOTS = 8
"""Of a new link: twice what a client keeps on its way (`link.CALLS_IN_FLIGHT`), for rows that are
sent again."""

# Indices of the control words; those written during calls have a cache line each.
VERSION_WORD, SLOTS_WORD, REQUEST_PAGES_WORD, ANSWER_PAGES_WORD = range(4)
SERVER_ASLEEP = 16
"""Not 0 while the client has to notify the server; in a private segment always."""
CLIENT_ASLEEP = 32
FIRST_STATE = 48
STATE_STRIDE = 16
MAX_SLOTS = (PAGE_BYTES // 4 - FIRST_STATE) // STATE_STRIDE

FREE, POSTED, TAKEN, ANSWERED = range(4)

SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


@dataclass(frozen=True, slots=True)
class SegmentShape:
    """Room for each slot's request body and answer body, in whole pages with their headers."""

    slots: int
    request_pages: int
    answer_pages: int

    @property
    def slot_bytes(self) -> int:
        return (self.request_pages + self.answer_pages) * PAGE_BYTES

    @property
    def answer_offset(self) -> int:
        """Where in a slot the answer's header is."""
        return self.request_pages * PAGE_BYTES

    @property
    def total_bytes(self) -> int:
        return PAGE_BYTES + self.slots * self.slot_bytes

    @property
    def request_bytes(self) -> int:
        """Longest request body."""
        return self.request_pages * PAGE_BYTES - HEADER_BYTES

    @property
    def answer_bytes(self) -> int:
        """Longest answer body."""
        return self.answer_pages * PAGE_BYTES - HEADER_BYTES


def shape_for(request_bytes: int, answer_bytes: int, slots: int = SLOTS) -> SegmentShape:
    """The shape whose slots hold bodies of these lengths."""
    pages = (-(-(length + HEADER_BYTES) // PAGE_BYTES) for length in (request_bytes, answer_bytes))
    return SegmentShape(slots, *pages)


def state_word(slot: int) -> int:
    """Index of the control word with a slot's state."""
    return FIRST_STATE + slot * STATE_STRIDE


def slot_of(word: int) -> int:
    """The inverse of `state_word`."""
    return (word - FIRST_STATE) // STATE_STRIDE


class Segment:
    """A mapped segment."""

    def __init__(self, memory: mmap.mmap, shape: SegmentShape) -> None:
        self.shape = shape
        self._view = memoryview(memory)
        self.words: Words = np.frombuffer(memory, np.uint32, PAGE_BYTES // 4)
        self.address = int(self.words.ctypes.data)
        """Where the control page is in this process, as long as this object lives."""

    def find(self, state: int) -> int:
        """The lowest slot in this state, -1 if there is none."""
        return int(find(self.words, FIRST_STATE, STATE_STRIDE, self.shape.slots, state))

    def set(self, slot: int, state: int) -> None:
        """After everything that was written before."""
        publish(self.words, state_word(slot), state)

    def state(self, slot: int) -> int:
        return int(observe(self.words, state_word(slot)))

    def busy(self) -> bool:
        """Whether the server owes an answer to a call in one of the slots."""
        return self.find(POSTED) >= 0 or self.find(TAKEN) >= 0

    def answer_address(self, slot: int) -> int:
        """Address of the header of a slot's answer."""
        shape = self.shape
        return self.address + PAGE_BYTES + slot * shape.slot_bytes + shape.answer_offset

    def request(self, slot: int) -> memoryview:
        """Header and body room of a slot's request."""
        at = PAGE_BYTES + slot * self.shape.slot_bytes
        return self._view[at : at + self.shape.request_pages * PAGE_BYTES]

    def answer(self, slot: int) -> memoryview:
        """Header and body room of a slot's answer."""
        end = PAGE_BYTES + (slot + 1) * self.shape.slot_bytes
        return self._view[end - self.shape.answer_pages * PAGE_BYTES : end]


def private_segment(shape: SegmentShape) -> Segment:
    """A segment that no other process sees. Raises OSError: no memory."""
    segment = Segment(mmap.mmap(-1, shape.total_bytes), shape)
    segment.words[SERVER_ASLEEP] = 1
    return segment


def create_segment(shape: SegmentShape) -> tuple[Segment, int]:
    """A new segment and its file descriptor, which the caller sends away and closes.

    Raises:
        OSError: no memory.
    """
    fd = os.memfd_create("expertmesh-link", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, shape.total_bytes)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
        segment = Segment(mmap.mmap(fd, shape.total_bytes), shape)
    except BaseException:
        os.close(fd)
        raise
    segment.words[: ANSWER_PAGES_WORD + 1] = (
        LAYOUT_VERSION, shape.slots, shape.request_pages, shape.answer_pages,
    )  # fmt: skip
    return segment, fd


def open_segment(fd: int) -> Segment:
    """Map what a client sent; nothing in it is believed before it was checked.

    Raises:
        FrameError: not a segment of this layout, or one that could shrink under the reader.
        OSError: it cannot be mapped.
    """
    try:
        sealed = fcntl.fcntl(fd, fcntl.F_GET_SEALS) & SEALS == SEALS
    except OSError:
        sealed = False
    if not sealed:
        raise FrameError("the segment is not a sealed memfd")
    total = os.fstat(fd).st_size
    if total < PAGE_BYTES:
        raise FrameError(f"a segment of {total} bytes")
    memory = mmap.mmap(fd, total)
    version, slots, request_pages, answer_pages = (
        int(word) for word in np.frombuffer(memory, np.uint32, 4).copy()
    )
    if version != LAYOUT_VERSION:
        raise FrameError(f"segment layout {version}, this side speaks {LAYOUT_VERSION}")
    shape = SegmentShape(slots, request_pages, answer_pages)
    most_pages = MAX_BODY_BYTES // PAGE_BYTES + 1
    if not (
        0 < slots <= MAX_SLOTS
        and 0 < request_pages <= most_pages
        and 0 < answer_pages <= most_pages
        and shape.total_bytes == total
    ):
        raise FrameError(f"segment of {total} bytes declares {shape}")
    return Segment(memory, shape)
