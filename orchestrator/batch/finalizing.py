"""Writes a job's output and error files from its answers, and ends the job.

The files follow from the ledger alone, in the order of the input's lines, and job and files change
in one transaction: a runner that dies in between leaves nothing that its successor would not write
again, byte for byte.
"""

import contextlib
import hashlib
import json
from dataclasses import dataclass

from sqlalchemy import update

from orchestrator.batch.answers import error_line
from orchestrator.batch.content import ContentStore, Spool
from orchestrator.batch.file_rows import new_file_id
from orchestrator.batch.job_rows import EXPIRED, move
from orchestrator.batch.ledger import Ledger
from orchestrator.batch.records import FileRecord, JobRecord
from orchestrator.batch.states import JobState
from orchestrator.batch.tables import jobs

ROWS_PER_READ = 500
OUTPUT_PURPOSE = "batch_output"


@dataclass(slots=True)
class _Counts:
    done: int = 0
    failed: int = 0


def finalize(ledger: Ledger, store: ContentStore, job: JobRecord, now_s: float) -> None:
    """Write the files of a job that is finalizing or cancelling. Idempotent.

    Raises:
        StorageFullError, OSError: nothing has changed.
    """
    with store.spool() as output, store.spool() as errors:
        counts = _write(ledger, job, output, errors)
        kept = {}
        for kind, spool in (("output", output), ("error", errors)):
            digest = spool.seal()
            if spool.bytes:
                store.put(spool, digest)
                kept[kind] = _file(job, kind, spool, digest, now_s)
        while not _end(ledger, store, job, kept, counts, now_s):
            for kind, spool in (("output", output), ("error", errors)):
                if kind in kept:
                    store.put(spool, kept[kind].digest)


def _write(ledger: Ledger, job: JobRecord, output: Spool, errors: Spool) -> _Counts:
    counts, line = _Counts(), 0
    while rows := ledger.requests.answers(job.seq, line, ROWS_PER_READ):
        for row in rows:
            if len(row) == 2:
                counts.failed += 1
                errors.write(_unanswered(job, row[1]) + b"\n")
            else:
                _, _, ok, answer = row
                counts.done += ok
                counts.failed += not ok
                (output if ok else errors).write(answer + b"\n")
        line = rows[-1][0]
    return counts


def _unanswered(job: JobRecord, custom_id: str) -> bytes:
    """The error line of a request that was not computed."""
    # Of the same bytes whenever it is written.
    name = hashlib.sha256(json.dumps([job.id, custom_id]).encode()).hexdigest()[:32]
    if job.status is JobState.CANCELLING:
        code, message = "batch_cancelled", "the job was cancelled before this request was computed"
    else:
        code = "batch_expired"
        message = "the completion window was over before this request was computed"
    return error_line(f"batch_req_{name}", custom_id, code, message)


def _file(job: JobRecord, kind: str, spool: Spool, digest: str, now_s: float) -> FileRecord:
    return FileRecord(
        id=new_file_id(),
        owner=job.owner,
        filename=f"{job.id}_{kind}.jsonl",
        purpose=OUTPUT_PURPOSE,
        bytes=spool.bytes,
        digest=digest,
        created_at=now_s,
    )


def _end(
    ledger: Ledger,
    store: ContentStore,
    job: JobRecord,
    kept: dict[str, FileRecord],
    counts: _Counts,
    now_s: float,
) -> bool:
    """False if a content was removed since it was stored, as another file of the same bytes was."""
    final = JobState.CANCELLED
    if job.status is JobState.FINALIZING:
        final = JobState.EXPIRED if job.outcome == EXPIRED else JobState.COMPLETED
    with contextlib.suppress(_ContentGone), ledger.database.write() as connection:
        if not move(connection, job.id, job.status, final, now_s):
            return True  # ended already
        for file in kept.values():
            if not ledger.files.add_in(connection, file, store.has):
                raise _ContentGone
        connection.execute(
            update(jobs)
            .where(jobs.c.seq == job.seq)
            .values(
                completed=counts.done,
                failed=counts.failed,
                pause_reason="",
                **{f"{kind}_file": file.id for kind, file in kept.items()},
            )
        )
        return True
    return False


class _ContentGone(Exception):
    pass
