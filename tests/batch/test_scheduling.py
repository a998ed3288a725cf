"""Who gets which slots: properties of `allot`, `room` and `place`."""

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.batch.scheduling import EngineView, JobView, allot, place, room

jobs = st.lists(
    st.builds(
        JobView,
        seq=st.integers(0, 10**6),
        owner=st.sampled_from(["alice", "bob", "carol"]),
        priority=st.integers(-2, 2),
        waiting=st.integers(0, 30),
        in_flight=st.integers(0, 10),
    ),
    max_size=6,
    unique_by=lambda job: job.seq,
)


@given(jobs, st.integers(0, 60))
def test_no_slot_is_left_while_a_request_waits_and_none_is_made_up(jobs, slots):
    grants = allot(slots, jobs, {})
    assert sum(grants.values()) == min(slots, sum(job.waiting for job in jobs))
    assert all(grants.get(job.seq, 0) <= job.waiting for job in jobs)


@given(jobs, st.integers(0, 60), st.sampled_from([{}, {"alice": 3.0}]))
def test_nobody_gets_more_than_a_name_that_still_waits(jobs, slots, shares):
    grants = allot(slots, jobs, shares)
    held, hungry = {}, set()
    for job in jobs:
        got = grants.get(job.seq, 0)
        held[job.owner] = held.get(job.owner, 0) + job.in_flight + got
        if got < job.waiting:
            hungry.add(job.owner)
    got_some = {job.owner for job in jobs if grants.get(job.seq)}
    for owner in got_some:
        for other in hungry - {owner}:
            # Without the last slot that it got it would not have been ahead.
            assert (held[owner] - 1) / shares.get(owner, 1) <= held[other] / shares.get(other, 1)


@given(jobs, st.integers(0, 60))
def test_of_one_name_the_higher_priority_comes_first(jobs, slots):
    grants = allot(slots, jobs, {})
    for job in jobs:
        for other in jobs:
            lower = other.owner == job.owner and other.priority < job.priority
            if lower and grants.get(other.seq):
                assert grants.get(job.seq, 0) == job.waiting


def test_shares_are_kept():
    alice, bob = JobView(1, "alice", 0, 100, 0), JobView(2, "bob", 0, 100, 0)
    assert allot(30, [alice, bob], {"alice": 2.0}) == {1: 20, 2: 10}


def test_an_engine_is_filled_and_as_much_ahead_but_not_what_others_use():
    assert room(EngineView("e", 8, online=0, kv_used=0.2, ours=0)) == 16
    assert room(EngineView("e", 8, online=6, kv_used=0.2, ours=3)) == 7
    assert room(EngineView("e", 8, online=20, kv_used=0.2, ours=0)) == 0
    assert room(EngineView("e", 8, online=0, kv_used=0.99, ours=1)) == 0
    assert room(EngineView("e", 8, online=0, kv_used=0.99, ours=0)) == 16


def test_neighbours_stay_together():
    assert place(5, {"a": 3, "b": 4}) == ["b"] * 4 + ["a"]
    assert place(0, {"a": 3}) == []
