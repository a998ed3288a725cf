"""What a process's dispatchers tell of themselves over the directory's connection: how many calls,
how long they took, and who answered late or not at all.

A `Tally` is counted up by the dispatcher's thread; the subscription's thread makes a
`DispatchReport` of it every few seconds and sends it to the controller, where it is
`Subscriber.report` (`orchestrator.directory`). All numbers are totals since the dispatcher began.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

BOUNDS_S = (50e-6, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.5, 2.0)
"""Upper ends of the ranges that durations are counted in; one more has what is longer."""


@dataclass(slots=True, eq=False)
class Durations:
    """counts: by range."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS_S) + 1))
    sum_s: float = 0.0

    def add(self, duration_s: float) -> None:
        self.counts[bisect_left(BOUNDS_S, duration_s)] += 1
        self.sum_s += duration_s

    def total(self) -> "DurationSums":
        return DurationSums(tuple(self.counts), self.sum_s)


@dataclass(slots=True, eq=False)
class ShardTally:
    """late: calls that missed their soft deadline; refused: answered by an error; lost: links."""

    late: int = 0
    refused: int = 0
    lost: int = 0


NONE = ShardTally()
"""Of a shard that never was late, refused or lost."""


@dataclass(slots=True, eq=False)
class Tally:
    """starved: calls that waited because nobody could take some rows. resent: parts of calls that
    went to another shard too. failed: calls that ended in an error. sent: time to split and post a
    call; waited: time until its answers were added up, of what `wait` was asked for; served: time
    that the slowest of its shards computed for."""

    calls: int = 0
    starved: int = 0
    resent: int = 0
    failed: int = 0
    sent: Durations = field(default_factory=Durations)
    waited: Durations = field(default_factory=Durations)
    served: Durations = field(default_factory=Durations)
    shards: dict[str, ShardTally] = field(default_factory=dict)

    def shard(self, id: str) -> ShardTally:
        return self.shards.setdefault(id, ShardTally())


@dataclass(frozen=True, slots=True)
class DurationSums:
    """counts: one more than `BOUNDS_S`."""

    counts: tuple[int, ...] = (0,) * (len(BOUNDS_S) + 1)
    sum_s: float = 0.0

    def __add__(self, other: "DurationSums") -> "DurationSums":
        counts = tuple(a + b for a, b in zip(self.counts, other.counts, strict=True))
        return DurationSums(counts, self.sum_s + other.sum_s)


@dataclass(frozen=True, slots=True)
class ShardReport:
    """One shard of the view that is followed, or, with incarnation 0, one that has left it.

    scale: running average of the time its kernel took over the time that its measured cost
    predicts, 1 before the first answer: 2 is twice as slow as planned for. is_late: it owes an
    answer beyond its soft deadline and gets no rows. is_wrong: its answers were no numbers where
    another replica's were, or had another shape than asked for; it gets no rows either.
    round_trip_s, bytes_per_s: of the way to it, see `link_speed`; 0 where it was not measured.
    quiet_s: since its last answer; alone it makes a report no news.
    """

    id: str
    incarnation: int
    scale: float = 1.0
    is_late: bool = False
    late: int = 0
    refused: int = 0
    lost: int = 0
    is_wrong: bool = False
    round_trip_s: float = 0.0
    bytes_per_s: float = 0.0
    quiet_s: float = field(default=0.0, compare=False)


@dataclass(frozen=True, slots=True)
class DispatchReport:
    """See `Tally`; of all dispatchers of a process."""

    calls: int = 0
    starved: int = 0
    resent: int = 0
    failed: int = 0
    sent: DurationSums = DurationSums()
    waited: DurationSums = DurationSums()
    served: DurationSums = DurationSums()
    shards: tuple[ShardReport, ...] = ()


def report_of(tally: Tally, shards: Sequence[ShardReport]) -> DispatchReport:
    """shards: those of the view, without the tally's numbers; what others did stays counted."""
    known = dict(tally.shards)  # in one step: its own thread goes on counting
    gone = [ShardReport(id, 0) for id in sorted(set(known) - {shard.id for shard in shards})]
    told = []
    for shard in [*shards, *gone]:
        counted = known.get(shard.id, NONE)
        told.append(replace(shard, late=counted.late, refused=counted.refused, lost=counted.lost))
    return DispatchReport(
        tally.calls,
        tally.starved,
        tally.resent,
        tally.failed,
        tally.sent.total(),
        tally.waited.total(),
        tally.served.total(),
        tuple(told),
    )


def joined(reports: Sequence[DispatchReport]) -> DispatchReport:
    """Sums; of a shard the largest scale, the slowest way and the last answer."""
    if len(reports) == 1:
        return reports[0]
    shards: dict[str, ShardReport] = {}
    for shard in (shard for report in reports for shard in report.shards):
        before = shards.get(shard.id)
        shards[shard.id] = shard if before is None else _worse(before, shard)
    return DispatchReport(
        sum(report.calls for report in reports),
        sum(report.starved for report in reports),
        sum(report.resent for report in reports),
        sum(report.failed for report in reports),
        sum((report.sent for report in reports), DurationSums()),
        sum((report.waited for report in reports), DurationSums()),
        sum((report.served for report in reports), DurationSums()),
        tuple(shards.values()),
    )


def _worse(one: ShardReport, other: ShardReport) -> ShardReport:
    return ShardReport(
        one.id,
        one.incarnation,
        max(one.scale, other.scale),
        one.is_late or other.is_late,
        one.late + other.late,
        one.refused + other.refused,
        one.lost + other.lost,
        one.is_wrong or other.is_wrong,
        max(one.round_trip_s, other.round_trip_s),
        min(one.bytes_per_s, other.bytes_per_s) or max(one.bytes_per_s, other.bytes_per_s),
        min(one.quiet_s, other.quiet_s),
    )
