"""Token-level expert dispatch: split a batch over the shards, send, collect, add up.

A call begins with one flight (`flight`) over all its rows. Where shards are lost, refuse or are
late, another flight over their rows, a **cover**, goes to other replicas, by the same door; for
late ones the first answer wins. A cover stands for parts of one flight only, and counts as a whole
or not at all: so each row's experts are added once, whoever answers. Answers are added flight after
flight, in ascending shard order in each: the result does not depend on who answered first, but
another split adds in another order, so rows that were sent again may differ in the last bit. What
is no finite number is computed again by others, to see whose fault it is (`doubts`). Where no
replica is left, the call waits for the shard, then for the next view or link, and fails after the
mesh's `expert_wait_s`.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from actors.dispatch.adding import took_us
from actors.dispatch.backend import ExpertUnavailable
from actors.dispatch.device_rows import BatchRows
from actors.dispatch.doubts import Doubts
from actors.dispatch.flight import Answers, Flight
from actors.dispatch.report import DispatchReport, report_of
from actors.dispatch.shard_links import ShardLinks
from actors.dispatch.split import AnyInts, ExpertsUnplaced, Floats, rest_of
from actors.dispatch.view_source import ViewSource
from actors.wire.device_memory import DeviceMemory
from actors.wire.exchange import read_answer
from actors.wire.frame import Fault
from actors.wire.link import ClientLink, LinkClosed, LinkTimeout, RemoteError
from actors.wire.slots import AWAY, GOOD, LOST, ODD, unanswered

log = logging.getLogger(__name__)

LOOK_AGAIN_S = 0.02
"""How often a call whose rows nobody can take looks for new links and views."""
REFUSED_S = 0.25
"""How long a shard that refused a call is not asked for the same call again."""

NOBODY: set[ClientLink] = set()

Piece = tuple[Flight, int]
"""What one shard owes: its part of a flight."""


@dataclass(slots=True, eq=False)
class Call:
    """One MoE layer of one batch, on its way."""

    layer: int
    rows: BatchRows
    flights: list[Flight]
    """The first one over all rows, the others over rows of shards that were lost or late."""
    result: torch.Tensor | None = None
    refused: dict[ClientLink, float] = field(default_factory=dict)
    """Shards that answered that they cannot serve this call, and until when they are left out."""
    give_up_s: float | None = None
    """`time.monotonic()` after which rows that nobody takes end the call; None while all are
    taken."""
    doubts: Doubts | None = None
    """Of answers that are no finite numbers; None: there were none so far."""
    compute_us: int = 0
    """Time the slowest shard's kernel took, known after `wait`."""
    sample: int = 0
    """See `Header`."""


class Dispatcher:
    """`ExpertBackend` that talks to the shards itself."""

    def __init__(
        self, views: ViewSource, secret: bytes = b"", device: DeviceMemory | None = None
    ) -> None:
        """device: of the rows that will be sent, if its memory may be shared."""
        self._views = views
        self._links = ShardLinks(views, secret, device)
        self._tally = self._links.tally
        self._follower = views.join()
        self._follower.report = self._report
        self._call_id = 0
        self._idle: list[Flight] = []

    # -- ExpertBackend

    def send(
        self,
        layer: int,
        rows: torch.Tensor,
        topk_weights: torch.Tensor,
        topk_ids: torch.Tensor,
        sample: int = 0,
    ) -> Call:
        began_s = time.monotonic()
        call = Call(layer, BatchRows(rows), [], sample=sample)
        if topk_weights.dtype is not torch.float32:
            topk_weights = topk_weights.float()
        ids, weights = topk_ids.cpu().contiguous().numpy(), topk_weights.cpu().contiguous().numpy()
        self._follower.calls += 1
        try:
            flight = self._plan_or_wait(call, ids, weights)
        except BaseException:
            self._follower.calls -= 1
            self._tally.failed += 1
            raise
        call.give_up_s = None
        self._post(call, flight)
        self._tally.sent.add(time.monotonic() - began_s)
        # Now, while the shards are at work.
        call.result = torch.empty(rows.shape, dtype=torch.bfloat16, device=flight.sums_device)
        self._links.waiting.send_rest()
        return call

    def wait(self, call: Call) -> torch.Tensor:
        assert call.result is not None
        (flight,) = call.flights
        began_s = time.monotonic()
        try:
            if unanswered(flight.parts):
                self._links.waiting.answered(flight.parts, flight.due_s())
            call.compute_us = flight.collect(call.result)
            if call.compute_us < 0:
                call.compute_us = self._finish(call)
        except BaseException:
            self._tally.failed += 1
            raise
        finally:
            self._follower.calls -= 1
            self._release(call)
        self._tally.calls += 1
        self._tally.waited.add(time.monotonic() - began_s)
        self._tally.served.add(1e-6 * call.compute_us)
        return call.result

    def takes(self, device: torch.device) -> bool:
        return device.type == "cpu" or self._links.shares_with(device)

    def _report(self) -> DispatchReport:
        return report_of(self._tally, self._links.told())

    def close(self) -> None:
        self._views.leave(self._follower)
        self._links.close()

    # -- sending

    def _plan_or_wait(self, call: Call, ids: AnyInts, weights: Floats) -> Flight:
        """Split [T, K] choices; waits for links or another view while an expert has no replica."""
        while True:
            self._follower.version = self._links.follow().version
            try:
                return self._plan(call, ids, weights)
            except ExpertsUnplaced as unplaced:
                self._check_time(call, str(unplaced))
                self._links.waiting.news([], time.monotonic() + LOOK_AGAIN_S)

    def _plan(self, call: Call, ids: AnyInts, weights: Floats, late: bool = True) -> Flight:
        """A flight that is not posted. late: whether late shards may get rows that no other can
        take. Raises ExpertsUnplaced."""
        links, refused = self._links, NOBODY
        if call.refused:
            now_s = time.monotonic()
            refused = {link for link, until_s in call.refused.items() if until_s > now_s}
        flight = self._idle.pop() if self._idle else Flight()
        flight.split.plan(
            links.view.table, call.layer, links.usable(refused, late), links.cost, ids, weights
        )
        return flight

    def _post(self, call: Call, flight: Flight) -> None:
        first_call_id = self._call_id + 1
        self._call_id += len(self._links.view.shards)
        flight.post(self._links, call.rows, call.layer, first_call_id, call.sample)
        call.flights.append(flight)

    def _check_time(self, call: Call, problem: str) -> None:
        """Called while rows of a call have nowhere to go. Raises ExpertUnavailable."""
        wait_s, now_s = self._links.view.expert_wait_s, time.monotonic()
        if call.give_up_s is None:
            log.warning("%s; waiting for a replica", problem)
            self._tally.starved += 1
            call.give_up_s = now_s + wait_s
        if now_s >= call.give_up_s:
            raise ExpertUnavailable(f"{problem}; waited {wait_s:g} s for a replica")

    # -- when not every shard answers as it should

    def _finish(self, call: Call) -> int:
        """Bring the call to its end by whatever replicas there are; returns the kernel time."""
        assert call.result is not None
        while True:
            self._links.follow()
            for flight in call.flights:
                flight.find_lost()
                self._look_at_odd(call, flight)
            chosen = chosen_answers(call.flights[0])
            if chosen is not None:
                assert assignments_of(chosen) == call.flights[0].split.first[-1], "added up once"
                outcome = Answers.of(chosen).add_up(call.result)
                if not self._in_doubt(call, chosen, outcome):
                    return took_us(outcome)
                continue
            self._give_up_hung(call)
            look_s = self._send_again(call)
            tables = [flight.parts for flight in call.flights]
            self._links.waiting.news(tables, look_s)

    def _in_doubt(self, call: Call, chosen: Sequence[Piece], outcome: int) -> bool:
        """Whether others now compute some of what was added up, as it is no finite number."""
        assert call.result is not None
        if call.doubts is not None:
            call.doubts.judge(call.layer, self._links, call.result, chosen_answers)
        if outcome >= 0:
            return False
        doubts = call.doubts = call.doubts or Doubts()
        for flight, shard in doubts.suspects(chosen, call.rows.there, call.result):
            link = flight.links[shard]
            assert link is not None
            call.refused[link] = time.monotonic() + REFUSED_S
            if not self._cover(call, [(flight, shard)], late=False):
                doubts.add(flight, shard)
        return bool(doubts.open)

    def _look_at_odd(self, call: Call, flight: Flight) -> None:
        """Answers that are no results: refusals, or the end of a link that sends nonsense."""
        for shard in flight.shards(ODD):
            posted = flight.posted(shard)
            try:
                header, _ = read_answer(posted.link, posted.segment, posted.slot)
                self._links.distrust(posted.link)
                self._links.lose(posted.link, LinkClosed(f"answered {header}"))
            except RemoteError as error:
                log.warning(
                    "%s refused layer %d: %s", posted.link.address, call.layer, error,
                    extra={"layer": call.layer, "epoch": self._links.view.epoch.number},
                )  # fmt: skip
                self._links.tally_of(posted.link).refused += 1
                call.refused[posted.link] = time.monotonic() + REFUSED_S
                posted.free()
                if error.fault is Fault.UNFIT:
                    self._links.lose(posted.link, LinkClosed("it cannot compute any more"))
            except LinkClosed as error:
                self._links.distrust(posted.link)
                self._links.lose(posted.link, error)
            flight.mark_lost(shard)

    def _give_up_hung(self, call: Call) -> None:
        """Close the links of shards that have owed an answer for longer than the hard deadline."""
        deadline_s, now_s = self._links.view.call_deadline_s, time.monotonic()
        for flight in call.flights:
            for shard in flight.shards(AWAY):
                if now_s >= flight.waited_since(shard) + deadline_s:
                    link = flight.links[shard]
                    assert link is not None
                    self._links.lose(link, LinkTimeout(f"no answer within {deadline_s:g} s"))
            flight.find_lost()

    def _send_again(self, call: Call) -> float:
        """Let other replicas compute what lost and late shards owe; returns when to look again."""
        now_s = time.monotonic()
        look_s = np.inf
        lost: list[Piece] = []
        late: list[Piece] = []
        for flight in call.flights:
            lost += [(flight, shard) for shard in flight.shards(LOST) if shard not in flight.cover]
            for shard in flight.shards(AWAY):
                since_s, link = flight.waited_since(shard), flight.links[shard]
                assert link is not None
                look_s = min(look_s, since_s + self._links.view.call_deadline_s)
                if shard in flight.cover:
                    continue
                due_s = since_s + flight.soft_s[shard]
                if due_s > now_s and not self._links.is_late(link):
                    look_s = min(look_s, due_s)
                else:
                    self._links.mark_late(link)
                    late.append((flight, shard))
        nowhere = self._cover(call, lost, True)
        if nowhere:
            flight, shard = nowhere[0]
            experts = np.unique(flight.split.batch(shard).experts)[:16].tolist()
            self._check_time(call, f"layer {call.layer}: no live shard holds experts {experts}")
        nowhere += self._cover(call, late, False)
        covered = len(nowhere) < len(lost) + len(late)
        return now_s if covered else min(look_s, now_s + LOOK_AGAIN_S if nowhere else np.inf)

    def _cover(self, call: Call, pieces: Sequence[Piece], late: bool) -> list[Piece]:
        """Post the pieces' rows to other shards; returns those that nobody else can take now.
        late: whether late shards may."""
        left: list[Piece] = []
        for flight in dict.fromkeys(flight for flight, _ in pieces):
            left += self._cover_parts(call, [p for p in pieces if p[0] is flight], late)
        return left

    def _cover_parts(self, call: Call, pieces: Sequence[Piece], late: bool) -> list[Piece]:
        """The same for pieces of one flight: all together or else one by one."""
        tokens, ids, weights = rest_of([flight.split.batch(d) for flight, d in pieces])
        try:
            cover = self._plan(call, ids, weights, late)
        except ExpertsUnplaced:
            if len(pieces) == 1:
                return list(pieces)
            return [left for piece in pieces for left in self._cover_parts(call, [piece], late)]
        cover.split.translate_rows(tokens)
        self._post(call, cover)
        self._tally.resent += len(pieces)
        for flight, shard in pieces:
            flight.cover[shard] = cover
        return []

    def _release(self, call: Call) -> None:
        """Slots that were answered are free; those that were not are owed."""
        for flight in call.flights:
            if not flight.is_over:
                give_up_s = flight.posted_s + self._links.view.call_deadline_s
                for shard in flight.shards(AWAY):
                    self._links.owe(flight.posted(shard), give_up_s)
                flight.free()
            self._idle.append(flight)
        call.flights = []


def chosen_answers(flight: Flight) -> list[Piece] | None:
    """The answers that make up all of a flight's rows, in the order in which they are added; None
    while there are none for some. A cover counts where not all that it stands for were answered."""
    chosen: list[Piece] = []
    covers: list[Flight] = []
    for shard in flight.shards(GOOD, AWAY, LOST):
        cover = flight.cover.get(shard)
        if cover is not None and not _all_answered(flight, cover):
            if cover not in covers:
                covers.append(cover)
        elif flight.status(shard) == GOOD:
            chosen.append((flight, shard))
        else:
            return None
    for cover in covers:
        instead = chosen_answers(cover)
        if instead is None:
            return None
        chosen += instead
    return chosen


def assignments_of(chosen: Sequence[Piece]) -> int:
    """How many choices of experts these answers are made of."""
    return sum(flight.split.share(shard)[2] for flight, shard in chosen)


def _all_answered(flight: Flight, cover: Flight) -> bool:
    return all(flight.status(shard) == GOOD for shard, by in flight.cover.items() if by is cover)
