"""The engines a request can go to, and which of them it goes to.

The controller names the engines; each engine tells its own state. A request goes to the ready
engine with the fewest requests of this gateway in flight (ties: the first in the controller's
order). An engine that is lost leaves the pool at once and comes back when it answers again.

An engine that the controller suspects, or that leaves several questions in a row unanswered, gets
no new requests until it answers. In the second case it counts as hung: requests that have heard
nothing from it meanwhile are given up there (`PooledEngine.hear`).

While the controller is silent the pool keeps serving with the engines it knows: the data plane does
not depend on the control plane being up.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from orchestrator.clients.mesh import (
    EngineClient,
    EngineInfo,
    EngineLostError,
    EngineStatus,
    MeshClient,
    MeshLostError,
)
from orchestrator.probe import Probe
from orchestrator.status import ComponentState, MeshStatus

logger = logging.getLogger(__name__)

T = TypeVar("T")

CONTROLLER_TIMEOUT_S = 2.0
"""A controller that takes longer to answer counts as silent."""

ENGINE_TIMEOUT_S = 2.0
"""An engine that takes longer to tell its state keeps the one it had, for a while."""

SILENT_AFTER = 3
"""Questions in a row without an answer after which an engine counts as hung."""


LOOK_AGAIN_S = 0.1
"""Pause between two looks for an engine while a request waits for one."""


@dataclass(slots=True, eq=False)
class PooledEngine:
    """One engine that the gateway is connected to. One that was lost and is met again is another
    one."""

    info: EngineInfo
    client: EngineClient
    status: EngineStatus
    probe: Probe[EngineStatus]
    in_flight: int = 0
    silent: int = 0
    """Questions in a row that it has not answered."""
    _waits: dict[asyncio.Timeout, float] = field(default_factory=dict)
    """Who waits for its next reply, and since when."""

    @property
    def ready(self) -> bool:
        doubtful = self.hung or self.info.state is ComponentState.SUSPECT
        return self.status.state is ComponentState.READY and not doubtful

    @property
    def hung(self) -> bool:
        return self.silent >= SILENT_AFTER

    async def hear(self, reply: Awaitable[T]) -> T:
        """Wait for `reply` for as long as the engine does not count as hung.

        Raises `EngineLostError` when it does, and what `reply` raises.
        """
        try:
            async with asyncio.timeout(None) as wait:
                self._waits[wait] = asyncio.get_running_loop().time()
                try:
                    return await reply
                finally:
                    del self._waits[wait]
        except TimeoutError as error:
            if not wait.expired():
                raise
            raise EngineLostError("it hangs: it answers nothing") from error

    def give_up_waits(self) -> None:
        """End the waits that have lasted as long as a question to a hung engine."""
        now_s = asyncio.get_running_loop().time()
        for wait, since_s in self._waits.items():
            if now_s - since_s >= ENGINE_TIMEOUT_S and not wait.expired():
                wait.reschedule(now_s)


class EnginePool:
    """The engines, with the requests that this gateway has in flight on each."""

    def __init__(self, mesh: MeshClient, clock: Callable[[], float] = time.monotonic) -> None:
        self._mesh = mesh
        self._clock = clock
        self._engines: dict[str, PooledEngine] = {}
        self._controller = Probe(self._question)
        self._meetings: dict[str, Probe[PooledEngine]] = {}
        self._refreshing: asyncio.Task[None] | None = None
        self._heard_s = clock()
        self.mesh_status: MeshStatus | None = None
        """What the controller said last; None before it first spoke."""

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

    @property
    def controller_silence_s(self) -> float:
        """Time since the controller last spoke, or since this pool was made."""
        return self._clock() - self._heard_s

    def choose(self, excluded: Collection[PooledEngine] = ()) -> PooledEngine | None:
        """The ready engine, not one of `excluded`, with the fewest requests in flight."""
        candidates = [engine for engine in self.ready if engine not in excluded]
        return min(candidates, key=lambda engine: engine.in_flight, default=None)

    async def wait_for_one(
        self, excluded: Collection[PooledEngine], wait_s: float
    ) -> PooledEngine | None:
        """`choose`, looking again for up to `wait_s` where there is none."""
        until_s = self._clock() + wait_s
        while (engine := self.choose(excluded)) is None:
            left_s = until_s - self._clock()
            if left_s <= 0:
                return None
            await asyncio.sleep(min(left_s, LOOK_AGAIN_S))
            await self.refresh()
        return engine

    @contextmanager
    def lease(self, engine: PooledEngine) -> Iterator[None]:
        """Count one request as in flight on `engine`."""
        engine.in_flight += 1
        try:
            yield
        finally:
            engine.in_flight -= 1

    def drop(self, engine: PooledEngine) -> None:
        """Choose an engine no more that was lost or refused, until it answers as ready again."""
        if self._engines.get(engine.info.actor_name) is engine:
            del self._engines[engine.info.actor_name]

    async def refresh(self) -> None:
        """Ask the controller for the engines, and each engine for its state.

        Callers that come while it is being asked share the answer.
        """
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = asyncio.create_task(self._refresh())
        # Shielded: one caller that leaves must not take the answer from the others.
        await asyncio.shield(self._refreshing)

    async def _refresh(self) -> None:
        infos = await self._ask_controller()
        named = {info.actor_name for info in infos}
        self._meetings = {k: v for k, v in self._meetings.items() if k in named}
        found = await asyncio.gather(*(self._ask_engine(info) for info in infos))
        self._engines = {e.info.actor_name: e for e in found if e is not None}

    async def _question(self) -> tuple[MeshStatus, list[EngineInfo]]:
        return await self._mesh.status(), await self._mesh.engines()

    async def _ask_controller(self) -> list[EngineInfo]:
        try:
            status, infos = await self._controller.ask(CONTROLLER_TIMEOUT_S)
        except (MeshLostError, TimeoutError) as error:
            logger.warning("serving with the engines known so far: %r", error)
            return [engine.info for engine in self.engines]
        self.mesh_status, self._heard_s = status, self._clock()
        return infos

    async def _ask_engine(self, info: EngineInfo) -> PooledEngine | None:
        known = self._engines.get(info.actor_name)
        try:
            if known is None:
                return await self._meet(info)
            known.info = info
            known.status = await known.probe.ask(ENGINE_TIMEOUT_S)
            known.silent = 0
        except EngineLostError as error:
            logger.info("engine %s is left out: %s", info.id, error)
            return None
        except TimeoutError:
            if known is not None:
                known.silent += 1
                if known.hung:
                    known.give_up_waits()
        return known

    async def _meet(self, info: EngineInfo) -> PooledEngine:
        """Connect to an engine that is new, or was left out."""
        name = info.actor_name
        meeting = self._meetings.setdefault(name, Probe(partial(self._connect, info)))
        engine = await meeting.ask(ENGINE_TIMEOUT_S)
        del self._meetings[name]
        return engine

    async def _connect(self, info: EngineInfo) -> PooledEngine:
        client = await self._mesh.connect(info)
        return PooledEngine(info, client, await client.status(), Probe(client.status))
