"""The calls of one split on their way: written into the links' slots, and their answers added up.

One native pass each for all shards, whatever their transports and row codings. A shard's partial
sums are always made of the same rows and assignments; they are added in ascending shard order in
fp32 and rounded to bf16 once. So the same split gives the same bits, whoever answers first.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from numba import carray

from actors.dispatch.deadlines import LEARNING_RATE, OUTLIER, SMALLEST_SCALE, soft_wait_s
from actors.dispatch.shard_links import (
    ANSWER_BYTES,
    ANSWER_OFFSET,
    CALL_S,
    CODING,
    CONTROL,
    HEARD_S,
    READ_S,
    REQUEST_BYTES,
    ROW_S,
    SCALE,
    SLOT_BYTES,
    SLOTS,
    ShardLinks,
)
from actors.dispatch.split import Split
from actors.wire import slots as part
from actors.wire.bf16 import round_to_bf16
from actors.wire.exchange import Posted
from actors.wire.fp8_rows import encode_row
from actors.wire.frame import HEADER_BYTES, FrameKind
from actors.wire.frame_words import LONG_WORDS, WORDS, write_header
from actors.wire.layout import (
    call_bytes,
    call_rows_at,
    call_weights_at,
    result_bytes,
    scales_bytes,
    sum_bytes,
)
from actors.wire.link import ClientLink, LinkClosed
from actors.wire.segment import (
    FIRST_STATE,
    FREE,
    PAGE_BYTES,
    POSTED,
    SERVER_ASLEEP,
    STATE_STRIDE,
    Segment,
)
from native.atomics import find, observe, publish
from native.compiled import compiled
from native.pointers import pointer_to

Parts = part.Parts

LARGE_BODY_BYTES = 1 << 20
"""From here on a server is told at once: it works while the bodies for others are written."""

CALL, RESULT = int(FrameKind.CALL), int(FrameKind.RESULT)

# Why `post_calls` stopped before the last shard, in the two lowest bits of what it returns.
TELL, NO_ROOM = 1, 2
OUTCOMES = 4

NOT_ALL = -1


class Flight:
    """One split of (a part of) a batch, posted. Used again by later calls.

    parts: see `actors.wire.slots`, one for each shard of the view it was split by.
    soft_s: float64 [D], how long after `posted_s` each shard is late.
    """

    def __init__(self) -> None:
        self.split = Split()
        self.parts: Parts = part.new_parts(0)
        self.soft_s = np.empty(0)
        self.posted_s = 0.0
        self.is_over = True
        self.service = np.empty((0, 5))
        self.links: list[ClientLink | None] = []
        self.segments: list[Segment | None] = []
        self.cover: dict[int, Flight] = {}
        """By shard, the flight that others compute its rows in."""

    def post(self, links: ShardLinks, rows: torch.Tensor, layer: int, first_call_id: int) -> None:
        """Post what `split` gives to each shard; what cannot be posted is LOST.

        rows: [T, H] bf16, contiguous. first_call_id: shard d's call has this id + d.
        """
        split, table = self.split, links.table
        shards = len(table.links)
        if len(self.parts) != shards:
            self.parts, self.soft_s = part.new_parts(shards), np.empty(shards)
        self.cover.clear()
        self.is_over = False
        self.service, self.posted_s = table.service, time.monotonic()
        self.links, self.segments = table.links, table.segments
        view, at = links.view, 0
        while at < shards:
            stop, outcome = divmod(
                post_calls(
                    table.slots, table.service, self.parts, self.soft_s, at, split.first,
                    split.first_row, split.rows, split.row_index, split.experts, split.weights,
                    rows.data_ptr(), rows.shape[0], rows.shape[1], layer, view.epoch.number,
                    first_call_id, view.soft_deadline_s,
                ),
                OUTCOMES,
            )  # fmt: skip
            if outcome & TELL:
                self._tell(links, at, stop)
            if outcome & NO_ROOM:
                stop += self._make_room(links, stop, rows.shape[1])
                table = links.table
            at = stop

    def _tell(self, links: ShardLinks, begin: int, end: int) -> None:
        for shard, told in enumerate(self.parts[begin:end, part.TOLD].tolist(), begin):
            link = self.links[shard]
            if not told or link is None:
                continue
            try:
                link.notify()
            except LinkClosed as error:
                links.lose(link, error)
        links.bell.ring()

    def _make_room(self, links: ShardLinks, shard: int, hidden: int) -> bool:
        """Grow the link to a shard; True where there is none, and its part is LOST."""
        (_, rows, assignments), link = self.split.share(shard), self.links[shard]
        assert link is not None
        fp8 = int(self.parts[shard, part.CODING])
        grown = links.with_room(
            link, call_bytes(rows, hidden, assignments, fp8), result_bytes(rows, hidden, fp8)
        )
        if grown is None:
            self.mark_lost(shard)
            return True
        # The table that the flight began with stays as it was for others.
        self.links, self.segments = self.links.copy(), self.segments.copy()
        self.links[shard], self.segments[shard] = grown, grown.segment
        return False

    def due_s(self) -> float:
        """`time.monotonic()` at which the first of its shards may be late."""
        return float(self.posted_s + first_due(self.parts, self.soft_s))

    def waited_since(self, shard: int) -> float:
        """When this call was posted, or later the last answer of its shard came."""
        return max(self.posted_s, float(self.service[shard, HEARD_S]))

    def status(self, shard: int) -> int:
        return int(self.parts[shard, part.STATUS])

    def shards(self, *status: int) -> list[int]:
        """Shards whose parts have one of these."""
        known = self.parts[:, part.STATUS].tolist()
        return [shard for shard, what in enumerate(known) if what in status]

    def mark_lost(self, shard: int) -> None:
        """Its answer will not come, or is none."""
        self.parts[shard, part.STATUS] = part.LOST

    def posted(self, shard: int) -> Posted:
        """One of its calls."""
        link, segment = self.links[shard], self.segments[shard]
        assert link is not None
        assert segment is not None
        return Posted(link, segment, self.parts[shard : shard + 1].copy())

    def find_lost(self) -> None:
        """Parts whose links were closed meanwhile are LOST."""
        for shard in self.shards(part.AWAY):
            link = self.links[shard]
            if link is None or link.closed:
                self.mark_lost(shard)

    def collect(self, result: torch.Tensor) -> int:
        """Add all answers up, if they are there, and free their slots.

        result: [T, H] bf16, contiguous, to be filled. Returns the longest kernel time in us, or
        NOT_ALL, and then everything is as it was.
        """
        split = self.split
        compute_us = collect(
            self.parts, split.first_row, split.rows, result.data_ptr(), *result.shape,
            split.first, self.service, time.monotonic(),
        )  # fmt: skip
        self.is_over = compute_us != NOT_ALL
        return int(compute_us)

    def free(self) -> None:
        """Give back the slots of what was answered, and remember how long it took."""
        self.is_over = True
        learn(self.parts, self.split.first, self.service, time.monotonic())
        part.free_answered(self.parts)


@dataclass(frozen=True, slots=True, eq=False)
class Answers:
    """Answered parts of several flights in the order in which they are added, as `add_up` reads
    them."""

    parts: Parts
    first_row: npt.NDArray[np.int32]
    rows: npt.NDArray[np.int32]

    @classmethod
    def of(cls, chosen: Sequence[tuple[Flight, int]]) -> "Answers":
        """(flight, shard) of each."""
        batches = [flight.split.batch(shard).rows for flight, shard in chosen]
        first_row = np.cumsum([0, *map(len, batches)], dtype=np.int32)
        parts = np.array([flight.parts[shard] for flight, shard in chosen], np.int64)
        return cls(parts, first_row, np.concatenate(batches))

    def add_up(self, result: torch.Tensor) -> int:
        """As `Flight.collect`, but no slot is freed."""
        return int(add_up(self.parts, self.first_row, self.rows, result.data_ptr(), *result.shape))


@compiled()
def post_calls(  # type: ignore[no-untyped-def]
    slots, service, parts, soft_s, begin, first, first_row, rows, row_index, experts, weights,
    source, tokens, hidden, layer, epoch, call_id, longest_s,
):  # fmt: skip
    """Post from shard `begin` on. source: address of bf16 [T, H].

    Returns OUTCOMES * (shard to go on with) + TELL | NO_ROOM. Stops after a large body so that its
    server can be told, and at a shard whose link has no free slot or too small ones.
    """
    batch = carray(pointer_to(source), (tokens, hidden), np.uint16)
    outcome, written = 0, 0
    for shard in range(begin, parts.shape[0]):
        count = first_row[shard + 1] - first_row[shard]
        assignments = first[shard + 1] - first[shard]
        parts[shard] = 0
        if assignments == 0:
            continue
        if slots[shard, CONTROL] == 0:
            parts[shard, part.STATUS] = part.LOST
            continue
        fp8 = slots[shard, CODING]
        parts[shard, part.CODING] = fp8
        length = call_bytes(count, hidden, assignments, fp8)
        answer_length = result_bytes(count, hidden, fp8)
        if length > slots[shard, REQUEST_BYTES] or answer_length > slots[shard, ANSWER_BYTES]:
            return OUTCOMES * shard + outcome | NO_ROOM
        words = part.control_words(slots[shard, CONTROL])
        slot = find(words, FIRST_STATE, STATE_STRIDE, slots[shard, SLOTS], FREE)
        if slot < 0:
            return OUTCOMES * shard + outcome | NO_ROOM
        at = slots[shard, CONTROL] + PAGE_BYTES + slot * slots[shard, SLOT_BYTES]
        write_header(
            carray(pointer_to(at), (WORDS,), np.uint32),
            carray(pointer_to(at), (LONG_WORDS,), np.uint64),
            CALL, epoch, call_id + shard, layer, count, hidden, assignments, fp8, length,
        )  # fmt: skip
        body = carray(pointer_to(at + HEADER_BYTES), (length,), np.uint8)
        fill_call(shard, first, first_row, rows, row_index, experts, weights, batch, body, fp8)
        state = FIRST_STATE + slot * STATE_STRIDE
        publish(words, state, np.uint32(POSTED))
        parts[shard, part.STATUS] = part.AWAY
        parts[shard, part.CONTROL] = slots[shard, CONTROL]
        parts[shard, part.STATE] = state
        parts[shard, part.ANSWER] = at + slots[shard, ANSWER_OFFSET]
        parts[shard, part.KIND] = RESULT
        parts[shard, part.CALL_ID] = call_id + shard
        parts[shard, part.ROWS] = count
        parts[shard, part.HIDDEN] = hidden
        parts[shard, part.LENGTH] = answer_length
        predicted_s = service[shard, SCALE] * predict(service, shard, assignments)
        soft_s[shard] = soft_wait_s(predicted_s, longest_s)
        if observe(words, SERVER_ASLEEP):
            parts[shard, part.TOLD] = 1
            outcome |= TELL
        written += length
        if outcome and written >= LARGE_BODY_BYTES:
            return OUTCOMES * (shard + 1) + outcome
    return OUTCOMES * parts.shape[0] + outcome


@compiled()
def first_due(parts, soft_s):  # type: ignore[no-untyped-def]
    """Shortest soft deadline of those that have not answered, infinite if all have."""
    shortest_s = np.inf
    for shard in range(parts.shape[0]):
        if parts[shard, part.STATUS] == part.AWAY:
            shortest_s = min(shortest_s, soft_s[shard])
    return shortest_s


@compiled()
def predict(service, shard, assignments):  # type: ignore[no-untyped-def]
    """Seconds of a call by the shard's cost, if every assignment is to another expert."""
    per_assignment_s = service[shard, READ_S] + service[shard, ROW_S]
    return service[shard, CALL_S] + per_assignment_s * assignments


@compiled()
def fill_call(  # type: ignore[no-untyped-def]
    shard, first, first_row, rows, row_index, experts, weights, source, body, fp8
):
    """Write the body of the CALL to `shard`: ids, weights and its rows of source [T, H]."""
    hidden = source.shape[1]
    begin, count = first_row[shard], first_row[shard + 1] - first_row[shard]
    at, assignments = first[shard], first[shard + 1] - first[shard]
    weights_at, rows_at = call_weights_at(assignments), call_rows_at(assignments)
    indices = body[: weights_at // 2].view(np.int32)
    ids = body[weights_at // 2 : weights_at].view(np.int32)
    scales = body[weights_at:rows_at].view(np.float32)
    for i in range(assignments):
        indices[i] = row_index[at + i]
        ids[i] = experts[at + i]
        scales[i] = weights[at + i]
    if fp8:
        codes_at = rows_at + scales_bytes(count)
        row_scales, codes = body[rows_at:codes_at].view(np.float32), body[codes_at:]
        for i in range(count):
            code = codes[i * hidden : (i + 1) * hidden]
            row_scales[i] = encode_row(source[rows[begin + i]], code)
        return
    target = body[rows_at:].view(np.uint16)
    for i in range(count):
        row = source[rows[begin + i]]
        for h in range(hidden):
            target[i * hidden + h] = row[h]


@compiled()
def collect(  # type: ignore[no-untyped-def]
    parts, first_row, rows, result, tokens, hidden, first, service, now_s
):
    """`add_up`, and then `learn` and give all slots back."""
    compute_us = add_up(parts, first_row, rows, result, tokens, hidden)
    if compute_us != NOT_ALL:
        learn(parts, first, service, now_s)
        part.free_answered(parts)
    return compute_us


@compiled()
def add_up(parts, first_row, rows, result, tokens, hidden):  # type: ignore[no-untyped-def]
    """Add the answers of all parts in their order. first_row: int32 [P + 1], where each part's rows
    begin in `rows`, ascending. result: address of bf16 [T, H]. Returns us, or NOT_ALL.

    Row by row, so that a sum stays in the nearest cache until it is rounded.
    """
    compute_us = 0
    for i in range(parts.shape[0]):
        if parts[i, part.STATUS] == part.GOOD:
            compute_us = max(compute_us, parts[i, part.COMPUTE_US])
        elif parts[i, part.STATUS] != part.EMPTY:
            return NOT_ALL
    out = carray(pointer_to(result), (tokens, hidden), np.uint16)
    total = np.empty(hidden, np.float32)
    bits = total.view(np.uint32)
    at = first_row[:-1].copy()
    for token in range(tokens):
        total[:] = 0.0
        for i in range(parts.shape[0]):
            if at[i] == first_row[i + 1] or rows[at[i]] != token:
                continue
            fp8 = parts[i, part.CODING]
            sums = parts[i, part.ANSWER] + HEADER_BYTES
            sums += sum_bytes(hidden, fp8) * (at[i] - first_row[i])
            add_row(total, sums, fp8)
            at[i] += 1
        for h in range(hidden):
            out[token, h] = round_to_bf16(bits[h])
    return compute_us


@compiled()
def add_row(total, address, fp8):  # type: ignore[no-untyped-def]
    """total [H] += one row's partial sum."""
    hidden = total.shape[0]
    if fp8:
        codes = carray(pointer_to(address), (hidden,), np.uint16)
        for h in range(hidden):
            total[h] += np.uint32(np.uint32(codes[h]) << np.uint32(16)).view(np.float32)
    else:
        sums = carray(pointer_to(address), (hidden,), np.float32)
        for h in range(hidden):
            total[h] += sums[h]


@compiled()
def learn(parts, first, service, now_s):  # type: ignore[no-untyped-def]
    """Note who answered, and how long its kernel took against the prediction."""
    for shard in range(parts.shape[0]):
        if parts[shard, part.STATUS] != part.GOOD:
            continue
        service[shard, HEARD_S] = now_s
        predicted_s = predict(service, shard, first[shard + 1] - first[shard])
        if predicted_s > 0:
            scale = service[shard, SCALE]
            ratio = min(1e-6 * parts[shard, part.COMPUTE_US] / predicted_s, OUTLIER * scale)
            service[shard, SCALE] = max(scale + LEARNING_RATE * (ratio - scale), SMALLEST_SCALE)
