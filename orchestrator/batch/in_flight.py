"""Requests that engines have, and answers that are not written yet.

The runner keeps nothing else of a job's requests, so its memory does not depend on jobs' sizes.
"""

import asyncio
import logging
from collections.abc import Callable

from orchestrator.batch import answers
from orchestrator.batch.active_job import ActiveJob
from orchestrator.batch.engine_call import ask
from orchestrator.batch.engines import Engines
from orchestrator.batch.ledger import Ledger
from orchestrator.batch.records import Deferred, Leased, Settled
from orchestrator.batch.request_rows import ISOLATED_AFTER
from orchestrator.clients.mesh import EngineError, EngineLostError, EngineRefusedError

logger = logging.getLogger(__name__)


class InFlight:
    """wake: set whenever a request has come back."""

    def __init__(
        self,
        engines: Engines,
        ledger: Ledger,
        max_attempts: int,
        clock: Callable[[], float],
        wake: asyncio.Event,
    ) -> None:
        self._engines = engines
        self._ledger = ledger
        self._max_attempts = max_attempts
        self._clock = clock
        self._wake = wake
        self._tasks: dict[tuple[int, int], asyncio.Task[None]] = {}
        self._settled: list[Settled] = []
        self._deferred: list[Deferred] = []

    @property
    def unwritten(self) -> bool:
        """Whether there are answers to write."""
        return bool(self._settled or self._deferred)

    @property
    def requests(self) -> list[tuple[int, int]]:
        """(job, line) of what engines have."""
        return list(self._tasks)

    @property
    def tasks(self) -> list[asyncio.Task[None]]:
        return list(self._tasks.values())

    def settled_of(self, job: int) -> int:
        """Answers of a job that are not written yet."""
        return sum(settled.job == job for settled in self._settled)

    def begin(
        self, active: ActiveJob, request: Leased, body: bytes, name: str
    ) -> asyncio.Task[None]:
        """Have the engine of that name compute a request."""
        key = (request.job, request.line)
        active.in_flight += 1
        task = asyncio.create_task(self._compute(active, request, body, name))
        self._tasks[key] = task

        def end(_: asyncio.Task[None]) -> None:
            active.in_flight -= 1
            if self._tasks.get(key) is task:
                del self._tasks[key]
            self._wake.set()

        task.add_done_callback(end)
        return task

    async def write(self, term: int) -> set[int]:
        """Write the answers that came in since the last time, in one transaction; returns the jobs
        that have one."""
        settled, deferred = self._settled, self._deferred
        if not (settled or deferred):
            return set()
        self._settled, self._deferred = [], []
        try:
            await asyncio.to_thread(self._ledger.requests.settle, term, settled, deferred)
        except BaseException:
            self._settled = settled + self._settled
            self._deferred = deferred + self._deferred
            raise
        return {answer.job for answer in settled}

    async def recall(self, term: int, job: int) -> None:
        """Abort a job's requests, and write what was answered before."""
        tasks = [task for (seq, _), task in self._tasks.items() if seq == job]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.write(term)

    async def _compute(self, active: ActiveJob, request: Leased, body: bytes, name: str) -> None:
        attempts = self._max_attempts
        endpoint, engine = active.record.endpoint, self._engines.find(name)
        if engine is None:
            self._keep(answers.not_taken(request, self._clock()))
            return
        try:
            with self._engines.lease(engine):
                reply = await ask(engine.client, endpoint, body, active.traffic)
            self._keep(answers.after_reply(request, reply, attempts, self._clock()))
        except EngineRefusedError:
            self._engines.drop(engine)
            self._keep(answers.not_taken(request, self._clock()))
        except EngineLostError as error:
            self._engines.drop(engine)
            logger.warning("engine %s was lost with line %d: %s", name, request.line, error)
            outcome = answers.after_lost_engine(request, str(error), self._clock())
            if isinstance(outcome, Deferred) and outcome.engines_lost >= ISOLATED_AFTER:
                active.suspects += 1
            self._keep(outcome)
        except EngineError as error:
            self._keep(answers.after_failure(request, str(error), attempts, self._clock()))

    def _keep(self, outcome: Settled | Deferred) -> None:
        if isinstance(outcome, Settled):
            self._settled.append(outcome)
        else:
            self._deferred.append(outcome)
