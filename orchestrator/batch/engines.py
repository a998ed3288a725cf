"""The runner's engines: what they have to do by their own report, and what of that is ours."""

import asyncio
import contextlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from orchestrator.batch.scheduling import EngineView
from orchestrator.clients.engine_pool import EnginePool, PooledEngine
from orchestrator.clients.mesh import MeshClient

logger = logging.getLogger(__name__)

POLL_S = 0.5


@dataclass(slots=True)
class _Report:
    """ours: batch requests that the engine had when it told its load."""

    busy: int
    kv_used: float
    ours: int


class Engines:
    """Keeps a pool up to date, and counts what the runner has in each engine."""

    def __init__(self, mesh: MeshClient) -> None:
        self._pool = EnginePool(mesh)
        self._reports: dict[str, _Report] = {}
        self._polling: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._polling = asyncio.create_task(self._poll())

    async def stop(self) -> None:
        if self._polling is not None:
            self._polling.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._polling

    def views(self) -> list[EngineView]:
        """The engines that take requests."""
        return [self._view(engine) for engine in self._pool.ready]

    def find(self, name: str) -> PooledEngine | None:
        return next((e for e in self._pool.ready if e.info.actor_name == name), None)

    @contextmanager
    def lease(self, engine: PooledEngine) -> Iterator[None]:
        """Count one request as ours in `engine`."""
        with self._pool.lease(engine):
            yield

    def drop(self, engine: PooledEngine) -> None:
        self._pool.drop(engine)

    async def _poll(self) -> None:
        while True:
            try:
                ours = {e.info.actor_name: e.in_flight for e in self._pool.engines}
                await self._pool.refresh()
                self._reports = {
                    e.info.actor_name: _Report(
                        e.status.running + e.status.waiting,
                        e.status.kv_used,
                        ours.get(e.info.actor_name, 0),
                    )
                    for e in self._pool.engines
                }
            except Exception:
                logger.exception("the engines could not be looked up; trying again")
            await asyncio.sleep(POLL_S)

    def _view(self, engine: PooledEngine) -> EngineView:
        name = engine.info.actor_name
        report = self._reports.get(name) or _Report(0, 0.0, 0)
        online = max(0, report.busy - report.ours)
        return EngineView(name, engine.status.max_running, online, report.kv_used, engine.in_flight)
