"""Computes the requests of batch jobs, each until it has its one line.

A turn looks at the jobs, writes the answers that came in since the last turn in one transaction,
and gives engines what they have room for (`scheduling`). Everything that must survive is in the
ledger; the runner holds in memory only the requests that engines have (`in_flight`), and may be
killed at any moment. What takes long runs beside the turns (`long_work`).
"""

import asyncio
import contextlib
import errno
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from sqlalchemy.exc import DBAPIError

from orchestrator.batch import scheduling
from orchestrator.batch.active_job import ActiveJob
from orchestrator.batch.bodies import read_bodies
from orchestrator.batch.content import ContentStore
from orchestrator.batch.database import StorageFullError
from orchestrator.batch.engines import Engines
from orchestrator.batch.holding import disk_trouble, hold_back
from orchestrator.batch.in_flight import InFlight
from orchestrator.batch.job_rows import COMPLETED, EXPIRED
from orchestrator.batch.ledger import Ledger
from orchestrator.batch.long_work import LongWork
from orchestrator.batch.records import Leased
from orchestrator.batch.request_rows import SupersededError
from orchestrator.batch.settings import BatchSettings
from orchestrator.batch.states import FINISHED, JobState
from orchestrator.clients.mesh import MeshClient

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


class Runner:
    """One runner of one mesh."""

    def __init__(
        self,
        settings: BatchSettings,
        ledger: Ledger,
        store: ContentStore,
        mesh: MeshClient,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings
        self._config = settings.config
        self._ledger = ledger
        self._engines = Engines(mesh)
        self._clock = clock
        self._term = 0
        self._jobs: dict[int, ActiveJob] = {}
        self._wake = asyncio.Event()
        self._in_flight = InFlight(
            self._engines, ledger, self._config.max_attempts, clock, self._wake
        )
        self._long_work = LongWork(settings, ledger, store, clock)
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
                self._wake.clear()
                await self._turn_safely()
                if not self._in_flight.unwritten:
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(LOOK_S):
                            await self._wake.wait()
                await asyncio.sleep(TURN_S)
        except SupersededError as error:
            logger.warning("batch runner ends: %s", error)
        finally:
            await self._abandon()

    def look_soon(self) -> None:
        """Something happened to a job: the next turn looks at the jobs, and comes now."""
        self._looked_s = 0.0
        self._wake.set()

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
        written = await self._in_flight.write(self._term)
        if any(seq in self._jobs and not self._jobs[seq].in_flight for seq in written):
            self.look_soon()  # that may have been a job's last
        if now_s - self._looked_s >= LOOK_S:
            self._looked_s = now_s
            await self._look(now_s)
        if not self._trouble:
            await self._fill(now_s)
        if now_s - self._renewed_s >= self._config.lease_s / 4:
            self._renewed_s = now_s
            await self._renew(now_s)

    async def _look(self, now_s: float) -> None:
        records = await asyncio.to_thread(self._ledger.jobs.unfinished)
        for seq in self._jobs.keys() - {record.seq for record in records}:
            if not self._busy(self._jobs[seq]):
                del self._jobs[seq]
        self._trouble = disk_trouble(self._settings.folder, self._config.min_free_disk)
        for record in records:
            active = self._jobs.setdefault(record.seq, ActiveJob(record))
            active.record = record
            await self._advance(active, now_s)
        await self._explain(now_s)
        cleans = self._cleaning is not None and not self._cleaning.done()
        if not cleans and now_s - self._cleaned_s >= JANITOR_S:
            self._cleaned_s = now_s
            self._cleaning = self._begin(asyncio.to_thread(self._long_work.clean, now_s))

    async def _advance(self, active: ActiveJob, now_s: float) -> None:
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
                await self._in_flight.recall(self._term, job.seq)
                await asyncio.to_thread(self._ledger.jobs.finalize, job, EXPIRED, now_s)
            case JobState.IN_PROGRESS if job.open == 0 and not active.in_flight:
                await asyncio.to_thread(self._ledger.jobs.finalize, job, COMPLETED, now_s)
                self.look_soon()
            case JobState.FINALIZING | JobState.CANCELLING if not self._trouble:
                await self._in_flight.recall(self._term, job.seq)
                active.work = self._begin(self._long_work.finalize(job))
            case JobState.IN_PROGRESS if active.path is None:
                active.path = await asyncio.to_thread(self._long_work.input_path, job)
                active.suspects = await asyncio.to_thread(self._ledger.requests.suspects, job.seq)

    async def _fill(self, now_s: float) -> None:
        """Give engines what they have room for."""
        views = self._engines.views()
        ready = {
            seq: active
            for seq, active in self._jobs.items()
            if active.path is not None
            and not hold_back(active.record, self._config.run_between, now_s)
        }
        rooms = {view.name: min(scheduling.room(view), scheduling.BURST) for view in views}
        await self._isolate(ready, views, rooms, now_s)
        jobs = [
            scheduling.JobView(
                seq, a.record.owner, a.record.priority, self._waiting(a), a.in_flight
            )
            for seq, a in ready.items()
            if now_s >= a.dry_until_s
        ]
        slots = sum(rooms.values())
        grants = scheduling.allot(slots, jobs, self._config.shares)
        if grants and sum(grants.values()) == slots:
            self._wake.set()  # there may be room for more in the next turn
        for seq, count in grants.items():
            await self._begin_requests(self._jobs[seq], count, rooms, now_s)

    async def _isolate(
        self,
        ready: dict[int, ActiveJob],
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
        self, active: ActiveJob, count: int, rooms: dict[str, int], now_s: float
    ) -> None:
        until_s = now_s + self._config.lease_s
        leased, bodies = await asyncio.to_thread(self._lease, active, count, now_s, until_s)
        if len(leased) < count:
            active.dry_until_s = now_s + DRY_S
        for request, body, name in zip(
            leased, bodies, scheduling.place(len(leased), rooms), strict=True
        ):
            rooms[name] -= 1
            self._in_flight.begin(active, request, body, name)

    async def _begin_suspect(self, active: ActiveJob, name: str, now_s: float) -> bool:
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
        task = self._in_flight.begin(active, request, body, name)
        task.add_done_callback(self._end_isolation)
        return True

    def _end_isolation(self, _: asyncio.Task[None]) -> None:
        self._alone = None

    def _lease(
        self, active: ActiveJob, count: int, now_s: float, until_s: float
    ) -> tuple[list[Leased], list[bytes]]:
        assert active.path is not None
        leased = self._ledger.requests.lease(self._term, active.record.seq, count, now_s, until_s)
        return leased, read_bodies(active.path, leased)

    async def _renew(self, now_s: float) -> None:
        requests = self._ledger.requests
        await asyncio.to_thread(requests.heartbeat, self._term, now_s)
        until_s = now_s + self._config.lease_s
        await asyncio.to_thread(requests.renew, self._term, self._in_flight.requests, until_s)
        if expired := await asyncio.to_thread(requests.expire, self._term, now_s):
            logger.warning("%d leases have expired", expired)

    # -- long work

    async def _validate(self, active: ActiveJob) -> None:
        await self._long_work.validate(self._term, active)
        self.look_soon()

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

    # -- why jobs wait

    async def _explain(self, now_s: float) -> None:
        """Let clients see why a job waits."""
        said: dict[str, list[int]] = {}
        for seq, active in self._jobs.items():
            job = active.record
            if job.paused or job.status in FINISHED:
                continue
            reason = self._trouble
            if not reason and job.status is JobState.IN_PROGRESS:
                reason = hold_back(job, self._config.run_between, now_s)
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

    def _waiting(self, active: ActiveJob) -> int:
        written = self._in_flight.settled_of(active.record.seq)
        return max(0, active.record.open - active.in_flight - written)

    def _busy(self, active: ActiveJob) -> bool:
        return active.in_flight > 0 or (active.work is not None and not active.work.done())

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
        tasks = [*self._in_flight.tasks, *work]
        if self._cleaning is not None:
            tasks.append(self._cleaning)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._engines.stop()
