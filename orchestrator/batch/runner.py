"""Computes the requests of batch jobs, each until it has its one line.

A turn looks at the jobs, writes the answers that came in since the last turn in one transaction,
and gives engines what they have room for (`scheduling`). Everything that must survive is in the
ledger; the runner holds in memory only the requests that engines have, so its memory does not
depend on the size of jobs, and it may be killed at any moment.

Validation, the writing of files and the removal of old rows take long, and run beside the turns, in
threads.
"""

import asyncio
import contextlib
import errno
import json
import logging
import shutil
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy.exc import DBAPIError

from orchestrator.batch import answers, scheduling
from orchestrator.batch.content import ContentStore
from orchestrator.batch.database import StorageFullError
from orchestrator.batch.engine_call import ask
from orchestrator.batch.engines import Engines
from orchestrator.batch.file_rows import FileInUseError
from orchestrator.batch.finalizing import finalize
from orchestrator.batch.job_rows import COMPLETED, EXPIRED
from orchestrator.batch.ledger import Ledger
from orchestrator.batch.records import Deferred, JobRecord, Leased, LineError, Settled
from orchestrator.batch.request_rows import ISOLATED_AFTER, SupersededError
from orchestrator.batch.settings import BatchSettings
from orchestrator.batch.states import FINISHED, JobState
from orchestrator.batch.validation import (
    MAX_ERRORS,
    Limits,
    Stretch,
    add_stretch,
    read_stretch,
)
from orchestrator.config.bytesize import format_bytes
from orchestrator.config.times import Hours
from orchestrator.gateway.mesh import EngineError, EngineLostError, EngineRefusedError, Mesh

logger = logging.getLogger(__name__)

T = TypeVar("T")

LOOK_S = 0.5
"""Time between two looks at the jobs."""
TURN_S = 0.02
"""Least time between two turns: answers that come close together are written together."""
DRY_S = 0.5
"""A job that had fewer requests ready than asked for is asked again after this."""
TROUBLE_S = 2.0
"""Pause after the database could not be reached or the disk was full."""
JANITOR_S = 60.0
PRIORITY = 100
"""vLLM's priority of a batch request. Online requests have 0, and lower comes first."""
OWNED_FIELDS = ("priority", "stream", "stream_options")
"""Fields of a body that the runner sets or leaves out, whatever the client says."""


@dataclass(slots=True)
class _Active:
    """A job that the runner works on."""

    record: JobRecord
    path: Path | None = None
    in_flight: int = 0
    dry_until_s: float = 0.0
    suspects: int = 0
    work: asyncio.Task[None] | None = None
    """Its validation or finalization."""


class Runner:
    """One runner of one mesh."""

    def __init__(
        self,
        settings: BatchSettings,
        ledger: Ledger,
        store: ContentStore,
        mesh: Mesh,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings
        self._config = settings.config
        self._ledger = ledger
        self._store = store
        self._engines = Engines(mesh)
        self._clock = clock
        self._term = 0
        self._jobs: dict[int, _Active] = {}
        self._tasks: dict[tuple[int, int], asyncio.Task[None]] = {}
        self._settled: list[Settled] = []
        self._deferred: list[Deferred] = []
        self._wake = asyncio.Event()
        self._looked_s = self._renewed_s = self._cleaned_s = 0.0
        self._cleaning: asyncio.Task[None] | None = None
        self._alone: str | None = None
        """Engine that computes a request which engines were lost with, and nothing else of ours."""
        self._trouble = ""
        """Why nothing new is begun now, for all jobs."""

    async def run(self) -> None:
        """Work until cancelled, or until another runner has begun."""
        self._term = await self._until_it_works(self._ledger.requests.begin)
        logger.info("batch runner begins term %d", self._term)
        self._engines.start()
        try:
            while True:
                await self._turn_safely()
                self._wake.clear()
                if not (self._settled or self._deferred):
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(LOOK_S):
                            await self._wake.wait()
                await asyncio.sleep(TURN_S)
        except SupersededError as error:
            logger.warning("batch runner ends: %s", error)
        finally:
            await self._abandon()

    # -- turns

    async def _turn_safely(self) -> None:
        try:
            await self._turn()
        except SupersededError:
            raise
        except (StorageFullError, OSError) as error:
            if isinstance(error, OSError) and error.errno not in {errno.ENOSPC, errno.EDQUOT}:
                raise
            await self._pause_all(f"the disk is full: {error}")
        except DBAPIError as error:
            logger.warning("the ledger cannot be reached: %s", error.orig)
            await asyncio.sleep(TROUBLE_S)

    async def _turn(self) -> None:
        now_s = self._clock()
        await self._write_answers()
        if now_s - self._looked_s >= LOOK_S:
            self._looked_s = now_s
            await self._look(now_s)
        if not self._trouble:
            await self._fill(now_s)
        if now_s - self._renewed_s >= self._config.lease_s / 4:
            self._renewed_s = now_s
            await self._renew(now_s)

    async def _write_answers(self) -> None:
        settled, deferred = self._settled, self._deferred
        if not (settled or deferred):
            return
        self._settled, self._deferred = [], []
        try:
            await asyncio.to_thread(self._ledger.requests.settle, self._term, settled, deferred)
        except BaseException:
            self._settled = settled + self._settled
            self._deferred = deferred + self._deferred
            raise

    async def _look(self, now_s: float) -> None:
        records = await asyncio.to_thread(self._ledger.jobs.unfinished)
        for seq in self._jobs.keys() - {record.seq for record in records}:
            if not self._busy(self._jobs[seq]):
                del self._jobs[seq]
        self._trouble = self._disk_trouble()
        for record in records:
            active = self._jobs.setdefault(record.seq, _Active(record))
            active.record = record
            await self._advance(active, now_s)
        await self._explain(now_s)
        cleans = self._cleaning is not None and not self._cleaning.done()
        if not cleans and now_s - self._cleaned_s >= JANITOR_S:
            self._cleaned_s = now_s
            self._cleaning = self._begin(asyncio.to_thread(self._clean, now_s))

    async def _advance(self, active: _Active, now_s: float) -> None:
        """Take the next step in a job's life, if it is time for it."""
        job = active.record
        if active.work is not None and not active.work.done():
            return  # it notices by itself when the job has moved on
        match job.status:
            case JobState.VALIDATING if now_s >= job.expires_at:
                await asyncio.to_thread(self._ledger.jobs.finalize, job, EXPIRED, now_s)
            case JobState.VALIDATING if not self._trouble:
                active.work = self._begin(self._validate(active))
            case JobState.IN_PROGRESS if now_s >= job.expires_at:
                await self._recall(job.seq)
                await asyncio.to_thread(self._ledger.jobs.finalize, job, EXPIRED, now_s)
            case JobState.IN_PROGRESS if job.open == 0 and not active.in_flight:
                await asyncio.to_thread(self._ledger.jobs.finalize, job, COMPLETED, now_s)
            case JobState.FINALIZING | JobState.CANCELLING if not self._trouble:
                await self._recall(job.seq)
                active.work = self._begin(self._finalize(job))
            case JobState.IN_PROGRESS if active.path is None:
                active.path = await asyncio.to_thread(self._input_path, job)
                active.suspects = await asyncio.to_thread(self._ledger.requests.suspects, job.seq)

    async def _fill(self, now_s: float) -> None:
        """Give engines what they have room for."""
        views = self._engines.views()
        ready = {
            seq: active
            for seq, active in self._jobs.items()
            if active.path is not None and not self._hold_back(active.record, now_s)
        }
        rooms = {view.name: scheduling.room(view) for view in views}
        await self._isolate(ready, views, rooms, now_s)
        jobs = [
            scheduling.JobView(
                seq, a.record.owner, a.record.priority, self._waiting(a), a.in_flight
            )
            for seq, a in ready.items()
            if now_s >= a.dry_until_s
        ]
        grants = scheduling.allot(sum(rooms.values()), jobs, self._config.shares)
        for seq, count in grants.items():
            await self._begin_requests(self._jobs[seq], count, rooms, now_s)

    async def _isolate(
        self,
        ready: dict[int, _Active],
        views: list[scheduling.EngineView],
        rooms: dict[str, int],
        now_s: float,
    ) -> None:
        """Empty an engine for a request that engines were lost with, and begin it there alone."""
        if self._alone is not None:
            rooms.pop(self._alone, None)
            return
        suspicious = next((a for a in ready.values() if a.suspects > 0), None)
        if suspicious is None or not views:
            return
        emptiest = min(views, key=lambda view: (view.ours, view.name))
        if emptiest.ours > 0 or await self._begin_suspect(suspicious, emptiest.name, now_s):
            rooms.pop(emptiest.name)

    async def _begin_requests(
        self, active: _Active, count: int, rooms: dict[str, int], now_s: float
    ) -> None:
        until_s = now_s + self._config.lease_s
        job = active.record
        leased, bodies = await asyncio.to_thread(self._lease, active, count, now_s, until_s)
        if len(leased) < count:
            active.dry_until_s = now_s + DRY_S
        for request, body, name in zip(
            leased, bodies, scheduling.place(len(leased), rooms), strict=True
        ):
            rooms[name] -= 1
            self._dispatch(active, job, request, body, name)

    async def _begin_suspect(self, active: _Active, name: str, now_s: float) -> bool:
        """Begin a request that engines were lost with, alone. False if none is ready."""
        until_s = now_s + self._config.lease_s
        seq = active.record.seq
        request = await asyncio.to_thread(
            self._ledger.requests.lease_suspect, self._term, seq, now_s, until_s
        )
        active.suspects = await asyncio.to_thread(self._ledger.requests.suspects, seq)
        if request is None:
            return False
        assert active.path is not None
        (body,) = await asyncio.to_thread(read_bodies, active.path, [request])
        self._alone = name
        task = self._dispatch(active, active.record, request, body, name)
        task.add_done_callback(self._end_isolation)
        return True

    def _end_isolation(self, _: asyncio.Task[None]) -> None:
        self._alone = None

    def _lease(
        self, active: _Active, count: int, now_s: float, until_s: float
    ) -> tuple[list[Leased], list[bytes]]:
        assert active.path is not None
        leased = self._ledger.requests.lease(self._term, active.record.seq, count, now_s, until_s)
        return leased, read_bodies(active.path, leased)

    # -- requests

    def _dispatch(
        self, active: _Active, job: JobRecord, request: Leased, body: bytes, name: str
    ) -> asyncio.Task[None]:
        key = (request.job, request.line)
        active.in_flight += 1
        task = asyncio.create_task(self._compute(job, request, body, name))
        self._tasks[key] = task

        def end(_: asyncio.Task[None]) -> None:
            active.in_flight -= 1
            if self._tasks.get(key) is task:
                del self._tasks[key]
            self._wake.set()

        task.add_done_callback(end)
        return task

    async def _compute(self, job: JobRecord, request: Leased, body: bytes, name: str) -> None:
        attempts = self._config.max_attempts
        engine = self._engines.find(name)
        if engine is None:
            self._keep(answers.not_taken(request, self._clock()))
            return
        try:
            with self._engines.lease(engine):
                reply = await ask(engine.client, job.endpoint, body)
            self._keep(answers.after_reply(request, reply, attempts, self._clock()))
        except EngineRefusedError:
            self._engines.drop(engine)
            self._keep(answers.not_taken(request, self._clock()))
        except EngineLostError as error:
            self._engines.drop(engine)
            logger.warning("engine %s was lost with line %d: %s", name, request.line, error)
            outcome = answers.after_lost_engine(request, str(error), self._clock())
            lost = isinstance(outcome, Deferred) and outcome.engines_lost >= ISOLATED_AFTER
            if lost and request.job in self._jobs:
                self._jobs[request.job].suspects += 1
            self._keep(outcome)
        except EngineError as error:
            self._keep(answers.after_failure(request, str(error), attempts, self._clock()))

    def _keep(self, outcome: Settled | Deferred) -> None:
        if isinstance(outcome, Settled):
            self._settled.append(outcome)
        else:
            self._deferred.append(outcome)

    async def _recall(self, job: int) -> None:
        """Abort a job's requests, and write what was answered before."""
        tasks = [task for (seq, _), task in self._tasks.items() if seq == job]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._write_answers()

    async def _renew(self, now_s: float) -> None:
        requests = self._ledger.requests
        await asyncio.to_thread(requests.heartbeat, self._term, now_s)
        until_s = now_s + self._config.lease_s
        await asyncio.to_thread(requests.renew, self._term, list(self._tasks), until_s)
        if expired := await asyncio.to_thread(requests.expire, self._term, now_s):
            logger.warning("%d leases have expired", expired)

    # -- long work

    async def _validate(self, active: _Active) -> None:
        job = active.record
        try:
            path = await asyncio.to_thread(self._input_path, job)
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
                    add_stretch, self._ledger.requests, self._term, job, stretch
                )
            if self._moved_on(active) or stretch.last:
                break
            job = advanced(job, stretch)
        if errors:
            await asyncio.to_thread(self._ledger.jobs.fail, job, errors[:MAX_ERRORS], self._clock())
        elif not self._moved_on(active):
            await asyncio.to_thread(self._ledger.requests.start, self._term, job, self._clock())
        self._looked_s = 0.0

    def _moved_on(self, active: _Active) -> bool:
        """Whether the job was cancelled or expired while it was validated."""
        job = active.record
        return job.status is not JobState.VALIDATING or self._clock() >= job.expires_at

    async def _finalize(self, job: JobRecord) -> None:
        await asyncio.to_thread(finalize, self._ledger, self._store, job, self._clock())

    def _begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        async def watched() -> None:
            try:
                await work
            except (StorageFullError, OSError) as error:
                await self._pause_all(f"the disk is full: {error}")
            except DBAPIError as error:
                logger.warning("the ledger cannot be reached: %s", error.orig)
                await asyncio.sleep(TROUBLE_S)
            except SupersededError:
                pass  # the next turn finds out as well
            finally:
                self._wake.set()

        return asyncio.create_task(watched())

    def _clean(self, now_s: float) -> None:
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

    # -- what holds jobs back

    def _hold_back(self, job: JobRecord, now_s: float) -> str:
        """Why nothing of a job in progress is begun now; empty if it is."""
        if job.status is not JobState.IN_PROGRESS:
            return job.status
        if job.paused:
            return job.pause_reason or "paused"
        between = job.run_between or self._config.run_between
        if between and not Hours.parse(between).contain(datetime.fromtimestamp(now_s)):
            return f"waits for its hours, {between}"
        return ""

    def _disk_trouble(self) -> str:
        free = shutil.disk_usage(self._settings.folder).free
        least = self._config.min_free_disk
        if free >= least:
            return ""
        return (
            f"the disk is nearly full: {format_bytes(free)} free, batch.min_free_disk asks for "
            f"{format_bytes(least)}"
        )

    async def _explain(self, now_s: float) -> None:
        """Let clients see why a job waits."""
        said: dict[str, list[int]] = {}
        for seq, active in self._jobs.items():
            job = active.record
            if job.paused or job.status in FINISHED:
                continue
            reason = self._trouble
            if not reason and job.status is JobState.IN_PROGRESS:
                reason = self._hold_back(job, now_s)
                if not reason and not self._engines.views():
                    reason = "no engine is ready"
            if reason != job.pause_reason:
                said.setdefault(reason, []).append(seq)
        for reason, seqs in said.items():
            await asyncio.to_thread(self._ledger.jobs.explain, seqs, reason)

    async def _pause_all(self, reason: str) -> None:
        """The disk is full: begin nothing and try again later."""
        if reason != self._trouble:
            logger.warning("batch jobs pause: %s", reason)
        self._trouble = reason
        with contextlib.suppress(StorageFullError, OSError, DBAPIError):
            await self._explain(self._clock())
        await asyncio.sleep(TROUBLE_S)

    # -- small parts

    def _waiting(self, active: _Active) -> int:
        written = sum(s.job == active.record.seq for s in self._settled)
        return max(0, active.record.open - active.in_flight - written)

    def _busy(self, active: _Active) -> bool:
        return active.in_flight > 0 or (active.work is not None and not active.work.done())

    def _input_path(self, job: JobRecord) -> Path:
        file = self._ledger.files.get(job.input_file)
        if file is None:
            raise FileNotFoundError(job.input_file)
        return self._store.local(file.digest)

    async def _until_it_works(self, call: Callable[[float], T]) -> T:
        while True:
            try:
                return await asyncio.to_thread(call, self._clock())
            except (DBAPIError, StorageFullError) as error:
                logger.warning("the batch ledger cannot be written: %s", error)
                await asyncio.sleep(TROUBLE_S)

    async def _abandon(self) -> None:
        """Leave everything as it is; a successor computes again what was under way."""
        work = [active.work for active in self._jobs.values() if active.work is not None]
        tasks = [*self._tasks.values(), *work]
        if self._cleaning is not None:
            tasks.append(self._cleaning)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._engines.stop()


def advanced(job: JobRecord, stretch: Stretch) -> JobRecord:
    """The job after the lines of a stretch were added."""
    return replace(
        job,
        checked_lines=stretch.checked[0],
        checked_bytes=stretch.checked[1],
        total=job.total + len(stretch.lines),
    )


def read_bodies(path: Path, leased: list[Leased]) -> list[bytes]:
    """What the engine is sent for each request: the line's body, with our priority in it."""
    bodies = []
    with path.open("rb") as file:
        for request in leased:
            file.seek(request.offset)
            body = json.loads(file.read(request.length))["body"]
            for field in OWNED_FIELDS:
                body.pop(field, None)
            bodies.append(json.dumps(body | {"priority": PRIORITY}).encode())
    return bodies
