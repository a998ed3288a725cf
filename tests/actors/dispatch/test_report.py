"""What dispatchers of a process did, counted and added up."""

from actors.dispatch.report import (
    BOUNDS_S,
    DispatchReport,
    Durations,
    DurationSums,
    ShardReport,
    Tally,
    joined,
    report_of,
)
from actors.dispatch.view_messages import ReportHead


def test_of_several_ways_the_slowest_is_told() -> None:
    ways = [
        ShardReport("a", 9, round_trip_s=1e-4, bytes_per_s=2e9),
        ShardReport("a", 9, round_trip_s=3e-4, bytes_per_s=1e9),
        ShardReport("a", 9),
    ]
    (shard,) = joined([DispatchReport(shards=(way,)) for way in ways]).shards
    assert (shard.round_trip_s, shard.bytes_per_s) == (3e-4, 1e9)


def test_durations_are_counted_by_their_upper_ends() -> None:
    durations = Durations()
    for duration_s in (0.0, BOUNDS_S[0], BOUNDS_S[0] * 1.01, BOUNDS_S[-1], BOUNDS_S[-1] + 1):
        durations.add(duration_s)
    total = durations.total()
    assert total.counts[:2] == (2, 1)
    assert total.counts[-2:] == (1, 1)
    assert sum(total.counts) == 5
    assert abs(total.sum_s - (2.01 * BOUNDS_S[0] + 2 * BOUNDS_S[-1] + 1)) < 1e-9


def test_a_report_has_the_views_shards_and_those_that_left() -> None:
    tally = Tally(calls=7, starved=1, resent=2, failed=3)
    tally.sent.add(0.25)
    tally.waited.add(0.5)
    tally.served.add(0.125)
    tally.shard("b").refused = 4
    tally.shard("b").lost = 5
    for gone in ("z", "y"):
        tally.shard(gone).late = 6
    shards = (ShardReport("a", 11, scale=1.5), ShardReport("b", 12, is_late=True))
    told = report_of(tally, shards)
    assert (told.calls, told.starved, told.resent, told.failed) == (7, 1, 2, 3)
    assert (told.sent.sum_s, told.waited.sum_s, told.served.sum_s) == (0.25, 0.5, 0.125)
    assert told.shards == (
        ShardReport("a", 11, scale=1.5),
        ShardReport("b", 12, is_late=True, refused=4, lost=5),
        ShardReport("y", 0, late=6),
        ShardReport("z", 0, late=6),
    )


def durations(at: int, sum_s: float) -> DurationSums:
    return DurationSums(tuple(int(i == at) for i in range(len(BOUNDS_S) + 1)), sum_s)


def test_reports_of_one_process_are_added_up_and_the_worst_of_a_shard_counts() -> None:
    one = DispatchReport(
        1, 2, 3, 4, durations(0, 0.5), durations(1, 2.0), durations(1, 1.5),
        (ShardReport("a", 9, 1.0, True, 1, 2, 3), ShardReport("b", 8, 3.0)),
    )  # fmt: skip
    other = DispatchReport(
        10, 20, 30, 40, durations(0, 0.25), durations(2, 4.0), durations(2, 3.0),
        (ShardReport("a", 9, 2.0, False, 10, 20, 30), ShardReport("b", 8, 1.0)),
    )  # fmt: skip
    both = joined([one, other])
    assert (both.calls, both.starved, both.resent, both.failed) == (11, 22, 33, 44)
    assert (both.sent.counts[0], both.sent.sum_s) == (2, 0.75)
    assert (both.waited.counts[:3], both.waited.sum_s) == ((0, 1, 1), 6.0)
    assert (both.served.counts[:3], both.served.sum_s) == ((0, 1, 1), 4.5)
    assert both.shards == (ShardReport("a", 9, 2.0, True, 11, 22, 33), ShardReport("b", 8, 3.0))
    assert joined([other, one]).shards[0] == both.shards[0]


def test_of_several_dispatchers_the_last_answer_counts_and_time_alone_is_no_news() -> None:
    reports = [DispatchReport(shards=(ShardReport("a", 9, quiet_s=s),)) for s in (0.5, 4.0)]
    assert reports[0] == reports[1]
    assert [shard.quiet_s for shard in joined(reports).shards] == [0.5]
    assert ReportHead.of(reports[1]).report().shards[0].quiet_s == 4.0


def test_a_report_alone_stays_as_it_is_and_none_is_an_empty_one() -> None:
    alone = DispatchReport(calls=3, shards=(ShardReport("a", 1),))
    assert joined([alone]) is alone
    assert joined([]) == DispatchReport()
