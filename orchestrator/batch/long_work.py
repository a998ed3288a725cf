"""What takes long in a job's life and runs beside the runner's turns, in threads.

That is its validation, the writing of files and the removal of old rows.
"""

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from orchestrator.batch.active_job import ActiveJob
from orchestrator.batch.content import ContentStore
from orchestrator.batch.file_rows import FileInUseError
from orchestrator.batch.finalizing import finalize
from orchestrator.batch.ledger import Ledger
from orchestrator.batch.records import JobRecord, LineError
from orchestrator.batch.settings import BatchSettings
from orchestrator.batch.states import JobState
from orchestrator.batch.validation import (
    MAX_ERRORS,
    Limits,
    Stretch,
    add_stretch,
    read_stretch,
)


class LongWork:
    """Each may be ended at any moment, and is then begun again."""

    def __init__(
        self,
        settings: BatchSettings,
        ledger: Ledger,
        store: ContentStore,
        clock: Callable[[], float],
    ) -> None:
        self._settings = settings
        self._config = settings.config
        self._ledger = ledger
        self._store = store
        self._clock = clock

    async def validate(self, term: int, active: ActiveJob) -> None:
        """Check a job's lines and add them to the ledger; then the job starts or has failed."""
        job = active.record
        try:
            path = await asyncio.to_thread(self.input_path, job)
        except FileNotFoundError:
            gone = [LineError("file_not_found", f"the file {job.input_file} is gone")]
            await asyncio.to_thread(self._ledger.jobs.fail, job, gone, self._clock())
            return
        limits = Limits(self._config.max_requests, self._settings.max_line_bytes)
        errors: list[LineError] = []
        while len(errors) < MAX_ERRORS:
            stretch = await asyncio.to_thread(
                read_stretch, path, job, self._settings.model_name, limits
            )
            errors += stretch.errors
            if not errors:
                errors += await asyncio.to_thread(
                    add_stretch, self._ledger.requests, term, job, stretch
                )
            if self._moved_on(active) or stretch.last:
                break
            job = advanced(job, stretch)
        if errors:
            await asyncio.to_thread(self._ledger.jobs.fail, job, errors[:MAX_ERRORS], self._clock())
        elif not self._moved_on(active):
            await asyncio.to_thread(self._ledger.requests.start, term, job, self._clock())

    def _moved_on(self, active: ActiveJob) -> bool:
        """Whether the job was cancelled or expired while it was validated."""
        job = active.record
        return job.status is not JobState.VALIDATING or self._clock() >= job.expires_at

    async def finalize(self, job: JobRecord) -> None:
        """Write the files of a job that has ended."""
        await asyncio.to_thread(finalize, self._ledger, self._store, job, self._clock())

    def clean(self, now_s: float) -> None:
        """Remove the rows of finished jobs, and files whose time is over."""
        for job in self._ledger.jobs.uncleaned():
            while self._ledger.requests.remove(job.seq):
                pass
            self._ledger.jobs.set_cleaned(job.seq)
        for file in self._ledger.files.expired(now_s):
            # One that a job still reads goes later.
            with contextlib.suppress(FileInUseError):
                self._ledger.files.delete(file, self._store.remove)
        self._store.remove_stale(now_s)

    def input_path(self, job: JobRecord) -> Path:
        """A local file with the job's requests. Raises FileNotFoundError where it was deleted."""
        file = self._ledger.files.get(job.input_file)
        if file is None:
            raise FileNotFoundError(job.input_file)
        return self._store.local(file.digest)


def advanced(job: JobRecord, stretch: Stretch) -> JobRecord:
    """The job after the lines of a stretch were added."""
    return replace(
        job,
        checked_lines=stretch.checked[0],
        checked_bytes=stretch.checked[1],
        total=job.total + len(stretch.lines),
    )
