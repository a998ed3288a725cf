"""The requests of jobs: leased to the one runner, answered once.

Every method of a runner names its term. `begin` takes a new one, which ends the leases of runners
before it; one that is still alive is refused from then on (`SupersededError`), so two runners never
write side by side. An answer is written in the same transaction that closes its request, and only
where that is open: after any crash a request has one answer or none.
"""

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

from sqlalchemy import (
    Connection,
    Select,
    bindparam,
    delete,
    func,
    insert,
    select,
    update,
)

from orchestrator.batch.database import Database, insert_new
from orchestrator.batch.job_rows import move
from orchestrator.batch.records import (
    Deferred,
    JobRecord,
    Leased,
    NewRequest,
    Settled,
)
from orchestrator.batch.states import OPEN, JobState, RequestState
from orchestrator.batch.tables import jobs, requests, results, runner

ISOLATED_AFTER = 2
"""Engines lost with a request, after which it is computed beside no other of the batch jobs."""

ROWS_PER_DELETE = 10_000
MAX_VARIABLES = 400
"""Keys in one statement; SQLite takes 999 variables where it is old."""

Answer = tuple[int, str, bool, bytes]
"""Line, custom id, whether it is for the output file, and the line of that file."""


class SupersededError(Exception):
    """Another runner has begun; this one must end."""


class RequestRows:
    """Requests of all jobs."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # -- the runner's term

    def begin(self, now_s: float) -> int:
        """The term of a new runner. What others had leased is pending again, and counted."""
        with self._database.write() as connection:
            connection.execute(update(runner).values(term=runner.c.term + 1, seen_at=now_s))
            term = int(connection.execute(select(runner.c.term)).scalar_one())
            self._release(connection, requests.c.state == RequestState.LEASED)
        return term

    def heartbeat(self, term: int, now_s: float) -> None:
        """Say that the runner lives. Raises `SupersededError`."""
        with self._database.write() as connection:
            _hold(connection, term)
            connection.execute(update(runner).values(seen_at=now_s))

    def runner_seen_at(self) -> float:
        with self._database.read() as connection:
            return float(connection.execute(select(runner.c.seen_at)).scalar_one())

    # -- validation

    def add(
        self, term: int, job: JobRecord, lines: Sequence[NewRequest], checked: tuple[int, int]
    ) -> list[NewRequest]:
        """Add the lines of a stretch of the input file that ends at `checked` (line, byte).

        All or nothing: where custom ids were there before, those lines are returned and none is
        added. Nothing happens either if the job is not being validated any more.

        Raises:
            SupersededError: another runner has begun.
        """
        rows = [
            {
                "job": job.seq,
                "line": line.line,
                "custom_id": line.custom_id,
                "offset": line.offset,
                "length": line.length,
                "prefix": line.prefix,
                "state": RequestState.PENDING,
                "ready_at": 0.0,
                "attempts": 0,
                "engines_lost": 0,
            }
            for line in lines
        ]
        with self._database.write() as connection:
            _hold(connection, term)
            still = update(jobs).where(jobs.c.seq == job.seq, jobs.c.status == JobState.VALIDATING)
            count = len(rows)
            values = {"checked_lines": checked[0], "checked_bytes": checked[1]}
            if not connection.execute(still.values(total=jobs.c.total + count, **values)).rowcount:
                return []
            doubled = _doubled(connection, job.seq, lines)
            if doubled:
                connection.rollback()
                return doubled
            if rows:
                connection.execute(insert(requests), rows)
        return []

    def start(self, term: int, job: JobRecord, now_s: float) -> bool:
        """The input file is validated: the job's requests may be leased."""
        with self._database.write() as connection:
            _hold(connection, term)
            return move(connection, job.id, JobState.VALIDATING, JobState.IN_PROGRESS, now_s)

    # -- computing

    def lease(self, term: int, job: int, count: int, now_s: float, until_s: float) -> list[Leased]:
        """At most `count` requests in the order of their prefixes, none that must be alone."""
        wanted = (
            _leasable(job, now_s)
            .where(requests.c.engines_lost < ISOLATED_AFTER)
            .order_by(requests.c.prefix, requests.c.line)
        )
        return self._lease(term, wanted.limit(count), until_s)

    def lease_suspect(self, term: int, job: int, now_s: float, until_s: float) -> Leased | None:
        """A request that engines were lost with, if there is one that is ready."""
        wanted = _leasable(job, now_s).where(requests.c.engines_lost >= ISOLATED_AFTER)
        leased = self._lease(term, wanted.order_by(requests.c.line).limit(1), until_s)
        return leased[0] if leased else None

    def suspects(self, job: int) -> int:
        """Open requests that must be computed alone."""
        with self._database.read() as connection:
            wanted = select(func.count()).where(
                requests.c.job == job,
                requests.c.engines_lost >= ISOLATED_AFTER,
                requests.c.state.in_(OPEN),
            )
            return int(connection.execute(wanted).scalar_one())

    def renew(self, term: int, leased: Iterable[tuple[int, int]], until_s: float) -> None:
        """Keep leases that would expire. Raises `SupersededError`."""
        keys = [{"_job": job, "_line": line} for job, line in leased]
        with self._database.write() as connection:
            _hold(connection, term)
            if keys:
                connection.execute(_one().values(leased_until=until_s), keys)

    def expire(self, term: int, now_s: float) -> int:
        """Leases that nobody renewed are pending again; returns their number."""
        with self._database.write() as connection:
            _hold(connection, term)
            condition = (requests.c.state == RequestState.LEASED) & (
                requests.c.leased_until < now_s
            )
            return self._release(connection, condition)

    def settle(self, term: int, settled: Sequence[Settled], deferred: Sequence[Deferred]) -> int:
        """Write answers and give requests back, in one transaction; returns the answers written.
        Requests that are closed already stay as they are.

        Raises:
            SupersededError: another runner has begun; nothing was written.
            StorageFullError: nothing was written.
        """
        with self._database.write() as connection:
            _hold(connection, term)
            still_open = _open_keys(connection, [(s.job, s.line) for s in settled])
            new = {(s.job, s.line): s for s in settled if (s.job, s.line) in still_open}
            if new:
                self._write(connection, list(new.values()))
            back = [
                {
                    "_job": d.job,
                    "_line": d.line,
                    "ready_at": d.ready_at,
                    "attempts": d.attempts,
                    "engines_lost": d.engines_lost,
                }
                for d in deferred
            ]
            if back:
                pending = _one().where(requests.c.state == RequestState.LEASED)
                names = ("ready_at", "attempts", "engines_lost")
                connection.execute(
                    pending.values(
                        state=RequestState.PENDING,
                        leased_until=None,
                        **{name: bindparam(name) for name in names},
                    ),
                    back,
                )
        return len(new)

    # -- the end of a job

    def answers(self, job: int, after_line: int, count: int) -> list[Answer | tuple[int, str]]:
        """The next lines of a job in their order, those without an answer as (line, custom id)."""
        wanted = (
            select(requests.c.line, requests.c.custom_id, results.c.ok, results.c.answer)
            .select_from(
                requests.outerjoin(
                    results,
                    (results.c.job == requests.c.job) & (results.c.line == requests.c.line),
                )
            )
            .where(requests.c.job == job, requests.c.line > after_line)
            .order_by(requests.c.line)
            .limit(count)
        )
        with self._database.read() as connection:
            rows = connection.execute(wanted).all()
        return [
            (row.line, row.custom_id)
            if row.ok is None
            else (row.line, row.custom_id, bool(row.ok), bytes(row.answer))
            for row in rows
        ]

    def remove(self, job: int) -> bool:
        """Remove some rows of a finished job; False when there are none left."""
        with self._database.write() as connection:
            wanted = select(requests.c.line).where(requests.c.job == job)
            lines = connection.execute(wanted.order_by(requests.c.line).limit(ROWS_PER_DELETE))
            last = max(lines.scalars(), default=None)
            if last is None:
                return False
            for table in (results, requests):
                connection.execute(delete(table).where(table.c.job == job, table.c.line <= last))
        return True

    # -- parts

    def _lease(self, term: int, wanted: Select[Any], until_s: float) -> list[Leased]:
        with self._database.write() as connection:
            _hold(connection, term)
            leased = [Leased(*row) for row in connection.execute(wanted)]
            if leased:
                keys = [{"_job": r.job, "_line": r.line} for r in leased]
                state = RequestState.LEASED
                connection.execute(_one().values(state=state, leased_until=until_s), keys)
        return leased

    def _write(self, connection: Connection, settled: list[Settled]) -> None:
        connection.execute(
            insert_new(connection, results),
            [{"job": s.job, "line": s.line, "ok": s.ok, "answer": s.answer} for s in settled],
        )
        states = {True: RequestState.DONE, False: RequestState.FAILED}
        connection.execute(
            _one().values(state=bindparam("_state"), leased_until=None),
            [{"_job": s.job, "_line": s.line, "_state": states[s.ok]} for s in settled],
        )
        by_job = groupby(sorted(settled, key=lambda s: s.job), lambda s: s.job)
        for job, group in by_job:
            ones = list(group)
            done = sum(s.ok for s in ones)
            connection.execute(
                update(jobs)
                .where(jobs.c.seq == job)
                .values(
                    completed=jobs.c.completed + done,
                    failed=jobs.c.failed + len(ones) - done,
                    prompt_tokens=jobs.c.prompt_tokens + sum(s.prompt_tokens for s in ones),
                    completion_tokens=jobs.c.completion_tokens
                    + sum(s.completion_tokens for s in ones),
                )
            )

    def _release(self, connection: Connection, condition: Any) -> int:
        # By job, as the index is.
        active = select(jobs.c.seq).where(jobs.c.status == JobState.IN_PROGRESS)
        counts = select(requests.c.job, func.count()).where(requests.c.job.in_(active), condition)
        released = connection.execute(counts.group_by(requests.c.job)).all()
        for job, count in released:
            more = {"recomputed": jobs.c.recomputed + count}
            connection.execute(update(jobs).where(jobs.c.seq == job).values(**more))
            connection.execute(
                update(requests)
                .where(requests.c.job == job, condition)
                .values(state=RequestState.PENDING, leased_until=None)
            )
        return sum(count for _, count in released)


def _hold(connection: Connection, term: int) -> None:
    """Keep the term from changing until the transaction ends."""
    current = connection.execute(select(runner.c.term).with_for_update()).scalar_one()
    if current != term:
        raise SupersededError(f"a runner of term {current} has begun after this one ({term})")


def _one() -> Any:
    """UPDATE of the request that the parameters `_job` and `_line` name."""
    return update(requests).where(
        requests.c.job == bindparam("_job"), requests.c.line == bindparam("_line")
    )


def _leasable(job: int, now_s: float) -> Select[Any]:
    columns = (
        requests.c.job,
        requests.c.line,
        requests.c.custom_id,
        requests.c.offset,
        requests.c.length,
        requests.c.attempts,
        requests.c.engines_lost,
    )
    return select(*columns).where(
        requests.c.job == job,
        requests.c.state == RequestState.PENDING,
        requests.c.ready_at <= now_s,
    )


def _open_keys(connection: Connection, keys: Iterable[tuple[int, int]]) -> set[tuple[int, int]]:
    # By job and line alone: SQLite uses no index for lists of pairs, and with the state among the
    # conditions it goes through all open requests of the job instead of these.
    found: set[tuple[int, int]] = set()
    for job, group in groupby(sorted(keys), lambda key: key[0]):
        lines = [line for _, line in group]
        for start in range(0, len(lines), MAX_VARIABLES):
            wanted = select(requests.c.line, requests.c.state).where(
                requests.c.job == job, requests.c.line.in_(lines[start : start + MAX_VARIABLES])
            )
            found.update((job, line) for line, state in connection.execute(wanted) if state in OPEN)
    return found


def _doubled(connection: Connection, job: int, lines: Sequence[NewRequest]) -> list[NewRequest]:
    """Lines whose custom id an earlier line of the job has."""
    by_id: dict[str, NewRequest] = {}
    doubled = []
    for line in lines:
        if line.custom_id in by_id:
            doubled.append(line)
        else:
            by_id[line.custom_id] = line
    names = list(by_id)
    for start in range(0, len(names), MAX_VARIABLES):
        wanted = select(requests.c.custom_id).where(
            requests.c.job == job,
            requests.c.custom_id.in_(names[start : start + MAX_VARIABLES]),
        )
        doubled += [by_id[name] for name in connection.execute(wanted).scalars()]
    return sorted(doubled, key=lambda line: line.line)
