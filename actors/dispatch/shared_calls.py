"""Calls to shards on this node, all of one layer at once and without a step of Python for each.

After a kernel has streamed gigabytes of weights through the caches, what a call costs is not what
its code computes but how much code and data it touches: every function and object comes from memory
again. So the bodies for all shards are written, and their answers added up, by one numba function
each, straight in the links' segments (`actors.wire.segment`). Whatever is not as usual (a body that
is too large, an answer that is no RESULT, a shard that is gone) is left to the links themselves,
which find the same slots where they were and say what is wrong.
"""

import select
import time
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from numba import carray

from actors.dispatch.split import Split, fill_call
from actors.wire.atomics import find, observe, publish, sched_yield, spin
from actors.wire.bf16 import round_to_bf16
from actors.wire.frame import HEADER_BYTES
from actors.wire.frame_words import COMPUTE_US, LONG_WORDS, WORDS, is_result, write_call
from actors.wire.link import ClientLink, LinkClosed
from actors.wire.patience import DEFAULT_SPIN_US, Patience
from actors.wire.pointers import pointer_to
from actors.wire.segment import (
    ANSWERED,
    CLIENT_ASLEEP,
    FIRST_STATE,
    FREE,
    PAGE_BYTES,
    POSTED,
    SERVER_ASLEEP,
    STATE_STRIDE,
)
from actors.wire.shared_link import LARGE_BODY_BYTES, Channel, SharedLink
from placement.compiled import compiled

Table = npt.NDArray[np.int64]
Slots = npt.NDArray[np.int32]

# Columns of the table of segments, one row for each shard; address 0 where there is none.
ADDRESS, SLOTS, SLOT_BYTES, REQUEST_BYTES, ANSWER_OFFSET, ANSWER_BYTES = range(6)
COLUMNS = 6

NO_SLOT = -1
NOT_A_RESULT = -1
INCOMPLETE, ASLEEP = 1, 2


@dataclass(frozen=True, slots=True, eq=False)
class SharedFlight:
    """Calls of one layer on their way, as they were posted.

    first_call_id: shard d's call has this id + d.
    slots: int32 [D], the slot of each shard's call, NO_SLOT where there is none.
    channels: by shard, whose slots these are.
    complete: every shard that was given something got its call.
    rings: one of them sleeps.
    """

    first_call_id: int
    table: Table
    slots: Slots
    channels: dict[int, Channel]
    complete: bool
    rings: bool


class SharedCalls:
    """The segments of a dispatcher's links, and the waiting for all of their answers together."""

    def __init__(self) -> None:
        self._table: Table = np.zeros((0, COLUMNS), np.int64)
        self._channels: dict[int, Channel] = {}
        self._poll = select.poll()
        self._by_fd: dict[int, Channel] = {}
        self._patience = Patience()

    def follow(self, links: dict[int, ClientLink], num_shards: int) -> None:
        """Use the segments that `links`, by shard, have now."""
        # A new table: flights keep the one that they were posted with.
        self._table = np.zeros((num_shards, COLUMNS), np.int64)
        self._channels = {
            shard: link.channel for shard, link in links.items() if isinstance(link, SharedLink)
        }
        self._poll = select.poll()
        self._by_fd = {}
        for shard, channel in self._channels.items():
            segment = channel.segment
            shape = segment.shape
            self._table[shard] = (
                segment.address, shape.slots, shape.slot_bytes, shape.request_bytes,
                shape.request_pages * PAGE_BYTES, shape.answer_bytes,
            )  # fmt: skip
            self._poll.register(channel.fileno(), select.POLLIN)
            self._by_fd[channel.fileno()] = channel

    def __bool__(self) -> bool:
        """Whether any link has a segment."""
        return bool(self._channels)

    def uses(self, link: SharedLink) -> bool:
        """Whether `follow` has seen the segment that this link has now."""
        return link.channel in self._channels.values()

    def post(
        self, split: Split, rows: torch.Tensor, layer: int, epoch: int, first_call_id: int
    ) -> SharedFlight:
        """Post what `split` gives to shards with a segment. rows: [T, H], bf16 and contiguous."""
        slots = np.empty(len(self._table), np.int32)
        outcome = post_calls(
            self._table, slots, split.first, split.first_row, split.rows, split.row_index,
            split.experts, split.weights, rows.data_ptr(), rows.shape[0], rows.shape[1], layer,
            epoch, first_call_id,
        )  # fmt: skip
        return SharedFlight(
            first_call_id, self._table, slots, self._channels,
            complete=not outcome & INCOMPLETE, rings=bool(outcome & ASLEEP),
        )  # fmt: skip

    def wait(self, flight: SharedFlight, deadline_s: float) -> bool:
        """Return True when every call of the flight is answered; False where the links have to wait
        for themselves: at the deadline, or when a shard is gone."""
        if unanswered(flight.table, flight.slots) == 0:
            return True
        if flight.table is not self._table:
            return False  # a link was lost or has grown since then: its bells ring elsewhere
        start_s = time.perf_counter()
        answered = _spin(flight, self._patience.spin_s)
        spun_s = time.perf_counter() - start_s
        if not answered:
            answered = self._sleep(flight, deadline_s)
        self._patience.learn(time.perf_counter() - start_s, spun_s)
        return answered

    def _sleep(self, flight: SharedFlight, deadline_s: float) -> bool:
        while True:
            try:
                if say_asleep(flight.table, flight.slots, 1) == 0:
                    return True
                left_s = deadline_s - time.monotonic()
                if left_s <= 0:
                    return False
                for fd, _ in self._poll.poll(max(1, left_s * 1000)):
                    self._by_fd[fd].drain()
            except LinkClosed:
                return False
            finally:
                say_asleep(flight.table, flight.slots, 0)
            # Whoever answered first has left a core free, and the others should be close.
            if _spin(flight, DEFAULT_SPIN_US * 1e-6):
                return True

    def collect(self, flight: SharedFlight, split: Split, result: torch.Tensor) -> int:
        """Add all answers up in ascending shard order and free their slots.

        result: [T, H] bf16, contiguous, to be filled. Returns the longest kernel time in us, or
        NOT_A_RESULT, and then everything is as it was.
        """
        return int(
            collect_answers(
                flight.table, flight.slots, flight.first_call_id, split.first_row, split.rows,
                result.data_ptr(), *result.shape,
            )
        )  # fmt: skip


def _spin(flight: SharedFlight, spin_s: float) -> bool:
    return spin(lambda yields: yield_until_answered(flight.table, flight.slots, yields), spin_s)


@compiled(inline="always")
def _words(table, shard):  # type: ignore[no-untyped-def]
    """The control words of a shard's segment."""
    return carray(pointer_to(table[shard, ADDRESS]), (PAGE_BYTES // 4,), np.uint32)


@compiled()
def post_calls(  # type: ignore[no-untyped-def]
    table, slots, first, first_row, rows, row_index, experts, weights, source, tokens, hidden,
    layer, epoch, call_id,
):  # fmt: skip
    """source: address of bf16 [T, H]; slots: int32 [D], to be filled. INCOMPLETE | ASLEEP."""
    batch = carray(pointer_to(source), (tokens, hidden), np.uint16)
    outcome = 0
    for shard in range(table.shape[0]):
        slots[shard] = NO_SLOT
        count, assignments = (
            first_row[shard + 1] - first_row[shard],
            first[shard + 1] - first[shard],
        )
        length, answer = 2 * count * hidden + 12 * assignments, 4 * count * hidden
        if assignments == 0:
            continue
        if (
            table[shard, ADDRESS] == 0
            or length > min(table[shard, REQUEST_BYTES], LARGE_BODY_BYTES)
            or answer > table[shard, ANSWER_BYTES]
        ):
            outcome |= INCOMPLETE
            continue
        words = _words(table, shard)
        slot = find(words, FIRST_STATE, STATE_STRIDE, table[shard, SLOTS], FREE)
        if slot < 0:
            outcome |= INCOMPLETE
            continue
        at = table[shard, ADDRESS] + PAGE_BYTES + slot * table[shard, SLOT_BYTES]
        write_call(
            carray(pointer_to(at), (WORDS,), np.uint32),
            carray(pointer_to(at), (LONG_WORDS,), np.uint64),
            epoch, call_id + shard, layer, count, hidden, assignments, length,
        )  # fmt: skip
        body = carray(pointer_to(at + HEADER_BYTES), (length,), np.uint8)
        fill_call(
            shard, first, first_row, rows, row_index, experts, weights, batch, body, False
        )  # fmt: skip
        publish(words, FIRST_STATE + slot * STATE_STRIDE, np.uint32(POSTED))
        if observe(words, SERVER_ASLEEP):
            outcome |= ASLEEP
        slots[shard] = slot
    return outcome


@compiled()
def unanswered(table, slots):  # type: ignore[no-untyped-def]
    """How many calls of a flight have no answer yet."""
    count = 0
    for shard in range(slots.shape[0]):
        if slots[shard] != NO_SLOT:
            state = observe(_words(table, shard), FIRST_STATE + slots[shard] * STATE_STRIDE)
            count += state != ANSWERED
    return count


@compiled()
def say_asleep(table, slots, asleep):  # type: ignore[no-untyped-def]
    """Tell the shards of a flight whether they have to ring; returns how many have not answered."""
    for shard in range(slots.shape[0]):
        if slots[shard] != NO_SLOT:
            publish(_words(table, shard), CLIENT_ASLEEP, np.uint32(asleep))
    return unanswered(table, slots)


@compiled()
def yield_until_answered(table, slots, yields):  # type: ignore[no-untyped-def]
    """Whether all are answered after at most so many yields of the core."""
    for _ in range(yields):
        if unanswered(table, slots) == 0:
            return True
        sched_yield()
    return unanswered(table, slots) == 0


@compiled()
def collect_answers(  # type: ignore[no-untyped-def]
    table, slots, call_id, first_row, rows, result, tokens, hidden
):
    """See `SharedCalls.collect`. result: address of bf16 [T, H]."""
    compute_us = 0
    for shard in range(slots.shape[0]):
        if slots[shard] == NO_SLOT:
            continue
        at = _answer(table, shard, slots[shard])
        words = carray(pointer_to(at), (WORDS,), np.uint32)
        long_words = carray(pointer_to(at), (LONG_WORDS,), np.uint64)
        count = first_row[shard + 1] - first_row[shard]
        if not is_result(words, long_words, call_id + shard, count, hidden):
            return NOT_A_RESULT
        compute_us = max(compute_us, words[COMPUTE_US])
    add_answers(table, slots, first_row, rows, result, tokens, hidden)
    for shard in range(slots.shape[0]):
        if slots[shard] != NO_SLOT:
            state = FIRST_STATE + slots[shard] * STATE_STRIDE
            publish(_words(table, shard), state, np.uint32(FREE))
    return compute_us


@compiled()
def add_answers(  # type: ignore[no-untyped-def]
    table, slots, first_row, rows, result, tokens, hidden
):
    """Row by row, so that a sum stays in the nearest cache until it is rounded."""
    out = carray(pointer_to(result), (tokens, hidden), np.uint16)
    total = np.empty(hidden, np.float32)
    bits = total.view(np.uint32)
    at = first_row[:-1].copy()
    for token in range(tokens):
        total[:] = 0.0
        for shard in range(slots.shape[0]):
            # Rows are ascending; a shard without a call has none.
            if at[shard] == first_row[shard + 1] or rows[at[shard]] != token:
                continue
            answer = _answer(table, shard, slots[shard]) + HEADER_BYTES
            answer += 4 * hidden * (at[shard] - first_row[shard])
            sums = carray(pointer_to(answer), (hidden,), np.float32)
            for h in range(hidden):
                total[h] += sums[h]
            at[shard] += 1
        for h in range(hidden):
            out[token, h] = round_to_bf16(bits[h])


@compiled(inline="always")
def _answer(table, shard, slot):  # type: ignore[no-untyped-def]
    """Address of the answer in a slot."""
    start = table[shard, ADDRESS] + PAGE_BYTES + slot * table[shard, SLOT_BYTES]
    return start + table[shard, ANSWER_OFFSET]
