"""The jobs of the ledger. Clients create, cancel, pause and resume; everything else is a runner's.

A job moves only along `states.TRANSITIONS`, and only from the state that the caller names: of two
that move it at once one is told that it came too late.
"""

import json
import secrets
from collections.abc import Iterable
from typing import Any

from sqlalchemy import Connection, func, insert, select, update

from orchestrator.batch.database import Database
from orchestrator.batch.pages import Page, PageQuery, UnknownCursorError
from orchestrator.batch.records import JobRecord, JobSum, LineError, NewJob
from orchestrator.batch.states import CANCELLABLE, FINISHED, JobState, check_transition
from orchestrator.batch.tables import files, jobs

COMPLETED, EXPIRED = "completed", "expired"
"""What a job that is being finalized becomes."""


class JobRows:
    """Jobs by id (for clients) or seq (for the runner)."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(self, job: NewJob, now_s: float) -> JobRecord | None:
        """A job that waits for its validation; None if its input file is gone."""
        values = {
            "id": f"batch_{secrets.token_hex(16)}",
            "owner": job.owner,
            "endpoint": job.endpoint,
            "input_file": job.input_file,
            "completion_window": job.completion_window,
            "metadata": json.dumps(dict(job.metadata)),
            "errors": "[]",
            "status": JobState.VALIDATING,
            "outcome": COMPLETED,
            "priority": job.priority,
            "run_between": job.run_between,
            "paused": False,
            "pause_reason": "",
            "created_at": now_s,
            "expires_at": now_s + job.window_s,
            "cleaned": False,
        }
        counts = (
            "total",
            "completed",
            "failed",
            "recomputed",
            "prompt_tokens",
            "completion_tokens",
            "checked_lines",
            "checked_bytes",
        )
        with self._database.write() as connection:
            there = select(files.c.id).where(files.c.id == job.input_file)
            if connection.execute(there).scalar_one_or_none() is None:
                return None
            connection.execute(insert(jobs).values(**values, **dict.fromkeys(counts, 0)))
            row = connection.execute(select(jobs).where(jobs.c.id == values["id"])).one()
        return JobRecord.from_row(row)

    def get(self, job_id: str, owner: str | None = None) -> JobRecord | None:
        with self._database.read() as connection:
            row = connection.execute(select(jobs).where(jobs.c.id == job_id)).one_or_none()
        if row is None or (owner is not None and row.owner != owner):
            return None
        return JobRecord.from_row(row)

    def page(self, owner: str, query: PageQuery) -> Page[JobRecord]:
        """Raises `UnknownCursorError`."""
        with self._database.read() as connection:
            after = None
            if query.after is not None:
                cursor = select(jobs.c.seq).where(jobs.c.id == query.after, jobs.c.owner == owner)
                after = connection.execute(cursor).scalar_one_or_none()
                if after is None:
                    raise UnknownCursorError(query.after)
            wanted = select(jobs).where(jobs.c.owner == owner)
            rows = connection.execute(query.apply(wanted, jobs.c.seq, after)).all()
        return query.page([JobRecord.from_row(row) for row in rows])

    def unfinished(self) -> list[JobRecord]:
        """Oldest first."""
        return self._select(jobs.c.status.not_in(FINISHED))

    def unfinished_of(self, owner: str) -> int:
        with self._database.read() as connection:
            wanted = (
                select(func.count())
                .select_from(jobs)
                .where(jobs.c.owner == owner, jobs.c.status.not_in(FINISHED))
            )
            return int(connection.execute(wanted).scalar_one())

    def sums(self) -> list[JobSum]:
        """Of the jobs in each state there are some of."""
        counts = (
            "total",
            "completed",
            "failed",
            "recomputed",
            "prompt_tokens",
            "completion_tokens",
        )
        wanted = select(
            jobs.c.status, func.count(), *(func.sum(jobs.c[name]) for name in counts)
        ).group_by(jobs.c.status)
        with self._database.read() as connection:
            rows = connection.execute(wanted).all()
        return [JobSum(JobState(state), *map(int, numbers)) for state, *numbers in rows]

    def uncleaned(self) -> list[JobRecord]:
        """Finished jobs whose requests still have rows."""
        return self._select(jobs.c.status.in_(FINISHED), ~jobs.c.cleaned)

    def cancel(self, job_id: str, now_s: float) -> bool:
        """False if the job is finished, or about to be."""
        with self._database.write() as connection:
            return any(
                move(connection, job_id, state, JobState.CANCELLING, now_s) for state in CANCELLABLE
            )

    def pause(self, job_id: str, reason: str) -> bool:
        """Begin no more requests of a job; False if there are none left to begin."""
        return self._set_paused(job_id, True, reason)

    def resume(self, job_id: str) -> bool:
        return self._set_paused(job_id, False, "")

    def explain(self, seqs: Iterable[int], reason: str) -> None:
        """Say why nothing of these jobs is begun now, without pausing them."""
        with self._database.write() as connection:
            connection.execute(
                update(jobs).where(jobs.c.seq.in_(list(seqs))).values(pause_reason=reason)
            )

    def fail(self, job: JobRecord, errors: Iterable[LineError], now_s: float) -> bool:
        """End a job whose input file will not do."""
        said = json.dumps([error.to_json() for error in errors])
        with self._database.write() as connection:
            return move(
                connection, job.id, JobState.VALIDATING, JobState.FAILED, now_s, errors=said
            )

    def finalize(self, job: JobRecord, outcome: str, now_s: float) -> bool:
        """No request of the job is begun from now on; its files are to be written."""
        with self._database.write() as connection:
            values = {"outcome": outcome}
            return move(connection, job.id, job.status, JobState.FINALIZING, now_s, **values)

    def set_cleaned(self, seq: int) -> None:
        with self._database.write() as connection:
            connection.execute(update(jobs).where(jobs.c.seq == seq).values(cleaned=True))

    def _set_paused(self, job_id: str, paused: bool, reason: str) -> bool:
        with self._database.write() as connection:
            changed = connection.execute(
                update(jobs)
                .where(jobs.c.id == job_id, jobs.c.status.in_(CANCELLABLE))
                .values(paused=paused, pause_reason=reason)
            )
        return bool(changed.rowcount)

    def _select(self, *conditions: Any) -> list[JobRecord]:
        with self._database.read() as connection:
            rows = connection.execute(select(jobs).where(*conditions).order_by(jobs.c.seq)).all()
        return [JobRecord.from_row(row) for row in rows]


def move(
    connection: Connection,
    job_id: str,
    old: JobState,
    new: JobState,
    now_s: float,
    **values: Any,
) -> bool:
    """Move a job that is in state `old`; False if it is in another."""
    check_transition(old, new)
    changed = connection.execute(
        update(jobs)
        .where(jobs.c.id == job_id, jobs.c.status == old)
        .values(status=new, **{f"{new}_at": now_s}, **values)
    )
    return bool(changed.rowcount)
