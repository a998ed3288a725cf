"""The calls of one split on their way: posted, waited for, and their answers added up.

One native pass each for all shards, whatever their transports and row codings (`posting`,
`adding`). A shard's partial sums are always made of the same rows and assignments, and are added in
ascending shard order. So the same split gives the same bits, whoever answers first.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from actors.dispatch import device_rows
from actors.dispatch.adding import add_up, collect
from actors.dispatch.device_rows import BatchRows, Place, gather, slots_for, through_host
from actors.dispatch.posting import NO_ROOM, OUTCOMES, TELL, post_calls
from actors.dispatch.service import first_due, learn
from actors.dispatch.shard_links import HEARD_S, ShardLinks
from actors.dispatch.split import Split
from actors.wire import slots as part
from actors.wire.exchange import Posted
from actors.wire.layout import DEVICE, call_bytes, result_bytes
from actors.wire.link import ClientLink, LinkClosed
from actors.wire.segment import POSTED, SERVER_ASLEEP, Segment, slot_of

Parts = part.Parts


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
        self.device = torch.device("cpu")
        """Of the rows."""
        self._any_there = False
        self.cover: dict[int, Flight] = {}
        """By shard, the flight that others compute its rows in."""

    def post(
        self, links: ShardLinks, rows: BatchRows, layer: int, first_call_id: int, sample: int = 0
    ) -> None:
        """Post what `split` gives to each shard; what cannot be posted is LOST.

        first_call_id: shard d's call has this id + d.
        sample: see `Header`.
        """
        split, table = self.split, links.table
        shards = len(table.links)
        if len(self.parts) != shards:
            self.parts, self.soft_s = part.new_parts(shards), np.empty(shards)
        self.cover.clear()
        self.is_over = False
        self.service, self.posted_s = table.service, time.monotonic()
        self.links, self.segments = table.links, table.segments
        self.device, self._any_there = rows.there.device, False
        view, at = links.view, 0
        (tokens, hidden), epoch = rows.there.shape, view.epoch.number
        while at < shards:
            slots = slots_for(table, split.first_row, rows)
            from_host = rows.on_host or through_host(slots, split.first_row)
            source = rows.host.data_ptr() if from_host else 0
            stop, outcome = divmod(
                post_calls(
                    slots, table.service, self.parts, self.soft_s, at, split.first,
                    split.first_row, split.rows, split.row_index, split.experts, split.weights,
                    source, tokens, hidden, layer, epoch, first_call_id, view.soft_deadline_s,
                    sample,
                ),
                OUTCOMES,
            )  # fmt: skip
            if slots is not table.slots and self._post_gathered(rows, at, stop):
                outcome |= TELL
            if outcome & TELL:
                self._tell(links, at, stop)
            if outcome & NO_ROOM:
                stop += self._make_room(links, stop, hidden)
                table = links.table
            at = stop

    def _post_gathered(self, rows: BatchRows, begin: int, end: int) -> bool:
        """Post the calls whose rows stay on the device; whether a server has to be told."""
        told = False
        for shard in range(begin, end):
            if not self._is_there(shard):
                continue
            link, segment = self.links[shard], self.segments[shard]
            assert link is not None
            assert link.area is not None
            assert segment is not None
            slot = slot_of(int(self.parts[shard, part.STATE]))
            first, last = self.split.first_row[shard : shard + 2]
            gather(rows, self.split.rows[first:last], link.area, slot)
            self._any_there = True
            segment.set(slot, POSTED)
            if segment.words[SERVER_ASLEEP]:
                self.parts[shard, part.TOLD] = told = True
        return told

    def _is_there(self, shard: int) -> bool:
        """Whether the rows of a posted part, and its sums, are on the device."""
        status, coding = self.parts[shard, [part.STATUS, part.CODING]].tolist()
        return status not in (part.EMPTY, part.LOST) and coding == DEVICE

    @property
    def sums_device(self) -> torch.device:
        """Where the sum of its answers is made."""
        return self.device if self._any_there else torch.device("cpu")

    def place(self, shard: int) -> Place:
        """Where a part's answer is."""
        link, segment = self.links[shard], self.segments[shard]
        assert link is not None
        assert segment is not None
        return segment, link.area

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
        coding = int(self.parts[shard, part.CODING])
        grown = links.with_room(
            link, call_bytes(rows, hidden, assignments, coding), result_bytes(rows, hidden, coding)
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
        NOT_ALL, and then everything is as it was, or NO_NUMBER less that time, and no slot is free.
        """
        split = self.split
        if self._any_there:
            return self._collect_there(result)
        compute_us = collect(
            self.parts, split.first_row, split.rows, result.data_ptr(), *result.shape,
            split.first, self.service, time.monotonic(),
        )  # fmt: skip
        self.is_over = compute_us >= 0
        return int(compute_us)

    def _collect_there(self, result: torch.Tensor) -> int:
        """As `collect`, where answers are on the device."""
        posted = self.shards(part.AWAY, part.GOOD, part.ODD, part.LOST)
        compute_us = Answers.of([(self, shard) for shard in posted]).add_up(result)
        if compute_us >= 0:
            self.free()
        return compute_us

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
    places: tuple[Place, ...]
    """Empty where all answers are on the host."""
    device: torch.device

    @classmethod
    def of(cls, chosen: Sequence[tuple[Flight, int]]) -> "Answers":
        """(flight, shard) of each."""
        batches = [flight.split.batch(shard).rows for flight, shard in chosen]
        first_row = np.cumsum([0, *map(len, batches)], dtype=np.int32)
        parts = np.array([flight.parts[shard] for flight, shard in chosen], np.int64)
        places: tuple[Place, ...] = ()
        if np.any(parts[:, part.CODING] == DEVICE):
            places = tuple(flight.place(shard) for flight, shard in chosen)
        return cls(parts, first_row, np.concatenate(batches), places, chosen[0][0].device)

    def add_up(self, result: torch.Tensor) -> int:
        """As `Flight.collect`, but no slot is freed."""
        if self.places:
            return device_rows.add_up(
                self.parts, self.places, self.first_row, self.rows, result, self.device
            )
        if result.device.type != "cpu":
            on_host = torch.empty(result.shape, dtype=result.dtype)
            outcome = self.add_up(on_host)
            result.copy_(on_host)
            return outcome
        return int(add_up(self.parts, self.first_row, self.rows, result.data_ptr(), *result.shape))
