"""The engines a request can go to, and which of them it goes to.

The controller names the engines; each engine tells its own state. A request goes to the ready
engine with the fewest requests of this gateway in flight (ties: the first in the controller's
order). An engine that is lost leaves the pool at once and comes back when it answers again.

While the controller is silent the pool keeps serving with the engines it knows: the data plane does
not depend on the control plane being up.
"""

import asyncio
import logging
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from orchestrator.gateway.mesh import (
    EngineClient,
    EngineInfo,
    EngineLostError,
    EngineStatus,
    Mesh,
    MeshLostError,
)
from orchestrator.status import ComponentState, MeshStatus

logger = logging.getLogger(__name__)

STATUS_TIMEOUT_S = 2.0
"""An engine that is slower to tell its state keeps the one it had."""


@dataclass(slots=True)
class PooledEngine:
    """One engine that the gateway is connected to."""

    info: EngineInfo
    client: EngineClient
    status: EngineStatus
    in_flight: int = 0

    @property
    def ready(self) -> bool:
        return self.status.state is ComponentState.READY


class EnginePool:
    """Engines by actor name, with the requests that this gateway has in flight on each."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self._engines: dict[str, PooledEngine] = {}
        self._refresh_lock = asyncio.Lock()
        self.mesh_status: MeshStatus | None = None
        """Last word of the controller; None before the first or while it is silent."""

    @property
    def engines(self) -> list[PooledEngine]:
        return list(self._engines.values())

    @property
    def ready(self) -> list[PooledEngine]:
        return [engine for engine in self._engines.values() if engine.ready]

    @property
    def in_flight(self) -> int:
        return sum(engine.in_flight for engine in self._engines.values())

    @property
    def max_running(self) -> int:
        """Sequences that the ready engines compute at once."""
        return sum(engine.status.max_running for engine in self.ready)

    def choose(self, excluded: Collection[str] = ()) -> PooledEngine | None:
        """The ready engine, not named in `excluded`, with the fewest requests in flight."""
        candidates = [e for e in self.ready if e.info.actor_name not in excluded]
        return min(candidates, key=lambda engine: engine.in_flight, default=None)

    @contextmanager
    def lease(self, engine: PooledEngine) -> Iterator[None]:
        """Count one request as in flight on `engine`."""
        engine.in_flight += 1
        try:
            yield
        finally:
            engine.in_flight -= 1

    def drop(self, engine: PooledEngine) -> None:
        """Stop choosing an engine that was lost or refused, until it answers as ready again."""
        if self._engines.get(engine.info.actor_name) is engine:
            del self._engines[engine.info.actor_name]

    async def refresh(self) -> None:
        """Ask the controller for the engines, and each engine for its state."""
        async with self._refresh_lock:
            try:
                self.mesh_status = await self._mesh.status()
                infos = await self._mesh.engines()
            except MeshLostError as error:
                if self.mesh_status is not None:
                    logger.warning("serving with the engines known so far: %s", error)
                self.mesh_status = None
                infos = [engine.info for engine in self.engines]
            found = await asyncio.gather(*(self._ask(info) for info in infos))
            self._engines = {e.info.actor_name: e for e in found if e is not None}

    async def _ask(self, info: EngineInfo) -> PooledEngine | None:
        known = self._engines.get(info.actor_name)
        try:
            client = known.client if known else self._mesh.connect(info)
            async with asyncio.timeout(STATUS_TIMEOUT_S):
                status = await client.status()
        except EngineLostError:
            return None
        except TimeoutError:
            return known
        if known is None:
            return PooledEngine(info, client, status)
        known.info, known.status = info, status
        return known
