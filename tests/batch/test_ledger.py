"""The ledger, on SQLite; `test_postgresql` runs the same on PostgreSQL."""

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from orchestrator.batch.database import sqlite_url
from orchestrator.batch.ledger import open_ledger
from orchestrator.batch.records import Deferred, FileRecord, NewJob, NewRequest, Settled
from orchestrator.batch.request_rows import SupersededError
from orchestrator.batch.states import JobState
from orchestrator.batch.tables import metadata

NOW = 1000.0


@pytest.fixture
def ledger(tmp_path):
    ledger = open_ledger(sqlite_url(tmp_path / "ledger.sqlite"))
    yield ledger
    ledger.database.close()


def add_job(ledger, lines=4, owner="me", start=True, prefixes=None):
    """A job in progress with `lines` requests, and the term of its runner."""
    file = FileRecord(f"file-{owner}-{lines}", owner, "in.jsonl", "batch", 1, "d", NOW)
    if ledger.files.get(file.id) is None:
        assert ledger.files.add(file, lambda _: True)
    new = NewJob(owner, "/v1/completions", file.id, "24h", 86400.0, {"a": "ä"})
    job = ledger.jobs.create(new, NOW)
    term = ledger.requests.begin(NOW)
    rows = [
        NewRequest(n, f"id-{n}", n * 10, 10, (prefixes or {}).get(n, bytes(16)))
        for n in range(1, lines + 1)
    ]
    assert ledger.requests.add(term, job, rows, (lines, lines * 10)) == []
    if start:
        assert ledger.requests.start(term, job, NOW)
    return ledger.jobs.get(job.id), term


def lines_of(leased):
    return [request.line for request in leased]


def test_migrations_make_the_tables_that_the_code_uses(ledger):
    with ledger.database.write() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []


def test_a_second_opening_changes_nothing(ledger):
    job, _ = add_job(ledger)
    again = open_ledger(ledger.database.url)
    assert again.jobs.get(job.id) == ledger.jobs.get(job.id)
    again.database.close()


def test_requests_are_leased_once_and_in_the_order_of_their_prefixes(ledger):
    job, term = add_job(ledger, prefixes={1: b"b" * 16, 2: b"a" * 16, 3: b"b" * 16, 4: b"a" * 16})
    first = ledger.requests.lease(term, job.seq, 3, NOW, NOW + 60)
    assert lines_of(first) == [2, 4, 1]
    assert lines_of(ledger.requests.lease(term, job.seq, 3, NOW, NOW + 60)) == [3]
    assert ledger.requests.lease(term, job.seq, 3, NOW, NOW + 60) == []


def test_an_answer_counts_once(ledger):
    job, term = add_job(ledger)
    ledger.requests.lease(term, job.seq, 2, NOW, NOW + 60)
    answers = [
        Settled(job.seq, 1, True, b"first", 3, 2),
        Settled(job.seq, 2, False, b"error"),
    ]
    assert ledger.requests.settle(term, answers, []) == 2
    assert ledger.requests.settle(term, [Settled(job.seq, 1, True, b"second")], []) == 0
    job = ledger.jobs.get(job.id)
    assert (job.completed, job.failed, job.open) == (1, 1, 2)
    assert (job.prompt_tokens, job.completion_tokens) == (3, 2)
    rows = ledger.requests.answers(job.seq, 0, 10)
    assert rows[:2] == [(1, "id-1", True, b"first"), (2, "id-2", False, b"error")]
    assert rows[2:] == [(3, "id-3"), (4, "id-4")]


def test_what_a_dead_runner_had_is_given_out_again_and_counted(ledger):
    job, term = add_job(ledger)
    ledger.requests.lease(term, job.seq, 3, NOW, NOW + 60)
    ledger.requests.settle(term, [Settled(job.seq, 1, True, b"x")], [])
    successor = ledger.requests.begin(NOW)
    assert ledger.jobs.get(job.id).recomputed == 2
    assert lines_of(ledger.requests.lease(successor, job.seq, 9, NOW, NOW + 60)) == [2, 3, 4]


def test_a_runner_that_was_replaced_writes_nothing(ledger):
    job, term = add_job(ledger)
    ledger.requests.lease(term, job.seq, 2, NOW, NOW + 60)
    ledger.requests.begin(NOW)
    with pytest.raises(SupersededError):
        ledger.requests.settle(term, [Settled(job.seq, 1, True, b"late")], [])
    with pytest.raises(SupersededError):
        ledger.requests.lease(term, job.seq, 1, NOW, NOW + 60)
    assert ledger.jobs.get(job.id).completed == 0


def test_leases_expire_unless_they_are_renewed(ledger):
    job, term = add_job(ledger)
    ledger.requests.lease(term, job.seq, 2, NOW, NOW + 60)
    ledger.requests.renew(term, [(job.seq, 2)], NOW + 120)
    assert ledger.requests.expire(term, NOW + 61) == 1
    assert lines_of(ledger.requests.lease(term, job.seq, 1, NOW + 61, NOW + 121)) == [1]


def test_a_deferred_request_waits_for_its_time(ledger):
    job, term = add_job(ledger, lines=1)
    ledger.requests.lease(term, job.seq, 1, NOW, NOW + 60)
    ledger.requests.settle(term, [], [Deferred(job.seq, 1, NOW + 5, 1, 0)])
    assert ledger.requests.lease(term, job.seq, 1, NOW + 4, NOW + 60) == []
    (again,) = ledger.requests.lease(term, job.seq, 1, NOW + 5, NOW + 60)
    assert (again.attempts, again.engines_lost) == (1, 0)


def test_requests_that_engines_were_lost_with_are_leased_apart(ledger):
    job, term = add_job(ledger, lines=2)
    ledger.requests.lease(term, job.seq, 1, NOW, NOW + 60)
    ledger.requests.settle(term, [], [Deferred(job.seq, 1, NOW, 0, 2)])
    assert lines_of(ledger.requests.lease(term, job.seq, 9, NOW, NOW + 60)) == [2]
    assert ledger.requests.suspects(job.seq) == 1
    assert ledger.requests.lease_suspect(term, job.seq, NOW, NOW + 60).line == 1


def test_doubled_custom_ids_are_told_with_their_lines_and_nothing_is_added(ledger):
    job, term = add_job(ledger, lines=2, start=False)
    more = [
        NewRequest(3, "new", 0, 1, b""),
        NewRequest(4, "id-1", 0, 1, b""),
        NewRequest(5, "new", 0, 1, b""),
    ]
    assert lines_of(ledger.requests.add(term, job, more, (5, 50))) == [4, 5]
    assert ledger.jobs.get(job.id).total == 2


def test_a_job_that_was_cancelled_takes_no_more_lines_and_does_not_start(ledger):
    job, term = add_job(ledger, lines=2, start=False)
    assert ledger.jobs.cancel(job.id, NOW)
    assert ledger.requests.add(term, job, [NewRequest(3, "x", 0, 1, b"")], (3, 30)) == []
    assert not ledger.requests.start(term, job, NOW)
    assert ledger.jobs.get(job.id).status is JobState.CANCELLING
    assert ledger.jobs.get(job.id).total == 2


def test_rows_of_a_finished_job_are_removed(ledger):
    job, _ = add_job(ledger)
    assert ledger.requests.remove(job.seq)
    assert not ledger.requests.remove(job.seq)
    assert ledger.requests.answers(job.seq, 0, 10) == []


def test_files_of_the_same_bytes_share_their_content_until_the_last_is_deleted(ledger):
    one, two = (FileRecord(f"file-{n}", "me", "f", "batch", 1, "same", NOW) for n in (1, 2))
    removed = []
    assert ledger.files.add(one, lambda _: True)
    assert ledger.files.add(two, lambda _: True)
    ledger.files.delete(one, removed.append)
    assert removed == []
    ledger.files.delete(two, removed.append)
    assert removed == ["same"]
    assert not ledger.files.add(one, lambda _: False)
