"""Looks at the mesh every few seconds and keeps what page, metrics and API show.

Lives in the gateway. While the controller is away the last snapshot stays, and says how old it is.
Everything kept is bounded: the last snapshot, some totals to take differences from, a ring of
points and one of happenings. Those who follow have no queues: each is given the newest look when it
has taken the one before.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray
from prometheus_client.core import Metric

from orchestrator.api.models import ClusterView, EpochView
from orchestrator.batch.figures import BatchFigures
from orchestrator.clients.mesh import MeshClient, MeshLostError
from orchestrator.config.telemetry import TelemetryConfig
from orchestrator.telemetry import matrix
from orchestrator.telemetry.batch import batch_families
from orchestrator.telemetry.dispatch import DispatchTotals, advance_dispatch, dispatch_families
from orchestrator.telemetry.engines import EngineFigures
from orchestrator.telemetry.families import families_of
from orchestrator.telemetry.happenings import Happening, happenings
from orchestrator.telemetry.report import Point, point_of
from orchestrator.telemetry.snapshot import Counts, Snapshot, Totals, Window, advance

if TYPE_CHECKING:
    from orchestrator.expert_load import ExpertLoad
    from orchestrator.status import MeshStatus

log = logging.getLogger(__name__)

LOOK_TIMEOUT_S = 10.0
KEPT_TOTALS = 32
"""Looks that differences can be asked to; who is further behind gets totals."""
KEPT_HAPPENINGS = 200


T = TypeVar("T")


class NoSuchShard(KeyError):
    """A shard that never told its load."""


class Observer:
    """The last look, and what led to it. engines: what they said last, by id: they are asked often
    enough for other reasons. unix: for what people read; clock: for ages."""

    def __init__(
        self,
        config: TelemetryConfig,
        mesh: MeshClient,
        engines: Callable[[], Mapping[str, EngineFigures]],
        in_flight: Callable[[], int],
        clock: Callable[[], float] = time.monotonic,
        unix: Callable[[], float] = time.time,
        batch: Callable[[], BatchFigures | None] = lambda: None,
    ) -> None:
        self._config = config
        self._mesh = mesh
        self._ask_engines = engines
        self._in_flight = in_flight
        self._clock = clock
        self._unix = unix
        self._batch = batch
        self._began_s = clock()
        # Not from 1: who followed an earlier gateway must not take our totals for its own.
        self._number = int(unix())
        self._totals = Totals()
        self._dispatch = DispatchTotals()
        self._before: deque[tuple[int, Counts]] = deque(maxlen=KEPT_TOTALS)
        self._looked_s: float | None = None
        self._busy: Window | None = None
        """The last window with traffic: a quiet one says nothing about balancedness."""
        self._placed: EpochView | None = None
        self._replicas: NDArray[np.int32] | None = None
        """[L, E] copies of each expert in the epoch `_placed`."""
        self._ticked = asyncio.Event()
        self.ticks = 0
        """Looks that were tried, whether or not they brought something."""
        self.snapshot: Snapshot | None = None
        self.engines: Mapping[str, EngineFigures] = {}
        self.points: deque[Point] = deque(maxlen=config.history)
        self.happenings: deque[Happening] = deque(maxlen=KEPT_HAPPENINGS)

    @property
    def age_s(self) -> float:
        """Of what is shown; since this observer began, where there is nothing."""
        since_s = self.snapshot.taken_s if self.snapshot is not None else self._began_s
        return self._clock() - since_s

    @property
    def batch(self) -> BatchFigures | None:
        """None where there are no batch jobs, or the ledger was not read yet."""
        return self._batch()

    async def run(self) -> None:
        """Look until cancelled. Whatever goes wrong with one look ends that look."""
        while True:
            try:
                async with asyncio.timeout(LOOK_TIMEOUT_S):
                    await self.look()
            except (MeshLostError, TimeoutError) as error:
                log.debug("nothing new of the mesh: %r", error)
            except Exception:
                log.exception("the mesh could not be looked at; trying again")
            self._tick()
            await asyncio.sleep(self._config.interval_s)

    async def look(self) -> None:
        """Take a snapshot. Raises MeshLostError if the controller does not answer."""
        self.engines = self._ask_engines()
        status, load, control = await asyncio.gather(
            self._mesh.status(), self._told(self._mesh.expert_load), self._told(self._mesh.view)
        )
        await self._look_at_placement(control)
        if control is not None:
            self._dispatch = advance_dispatch(self._dispatch, control.dispatchers)
        # Of hundreds of shards it takes tens of milliseconds, in the loop that carries tokens.
        window = await asyncio.to_thread(self._take, load)
        before = self.snapshot
        if window is not None and window.assignments:
            self._busy = window
        self._number += 1
        self.snapshot = Snapshot(
            self._number,
            self._clock(),
            status,
            self._totals,
            self._busy,
            self._replicas,
            control,
            load.traffic if load is not None else before.traffic if before is not None else (),
        )
        self._before.append((self._number, self._totals.counts))
        self.happenings += happenings(before.mesh if before else None, status, self._unix())
        self.points.append(self._point(status, window))

    async def followed(self) -> AsyncIterator[None]:
        """Once at once, then after every look, as quickly as the caller comes back for more."""
        yield
        while True:
            ticked = self._ticked
            await ticked.wait()
            yield

    def families(self, silence_s: float) -> list[Metric]:
        """For `/metrics` and OTLP; of the mesh nothing before the first look."""
        known = self.batch
        jobs = batch_families(known) if known is not None else []
        if self.snapshot is None:
            return jobs
        most = self._config.hot_experts
        mesh = families_of(self.snapshot, self.age_s, silence_s, most)
        return [*mesh, *dispatch_families(self._dispatch), *jobs]

    def matrix(self, since: int, shard: str | None) -> bytes:
        """The expert matrix (`matrix.py`): what came since look `since`, or totals.

        Encodes: call it in a thread. Raises NoSuchShard.
        """
        number, totals = self._number, self._totals
        if shard is not None:
            if shard not in totals.by_shard:
                raise NoSuchShard(shard)
            return matrix.encode(totals.by_shard[shard], number)
        known = dict(self._before).get(since)
        if known is None or known.shape != totals.counts.shape:
            return matrix.encode(totals.counts, number)
        return matrix.encode(totals.counts - known, number, since)

    async def _told(self, ask: Callable[[], Awaitable[T]]) -> T | None:
        """None where the mesh cannot tell yet: the rest of the look is worth having."""
        try:
            return await ask()
        except MeshLostError as error:
            log.debug("the mesh does not tell: %r", error)
            return None

    async def _look_at_placement(self, control: ClusterView | None) -> None:
        """Once for each epoch: it is large."""
        epoch = control.epoch if control is not None else None
        if epoch is None or epoch == self._placed:
            return
        placement = await self._told(self._mesh.placement)
        if placement is not None and placement.epoch is not None:
            self._placed = placement.epoch
            rows = [placement.copies[layer] for layer in placement.layers]
            self._replicas = np.array(rows, np.int32)

    def _take(self, load: "ExpertLoad | None") -> Window | None:
        now_s = self._clock()
        if load is None:
            return None
        length_s = now_s - (self._looked_s if self._looked_s is not None else self._began_s)
        first, self._looked_s = self._looked_s is None, now_s
        self._totals, window = advance(self._totals, load.layers, load.by_shard, length_s)
        if first:  # all that went before this gateway is no window's load
            return Window(np.zeros_like(window.counts), (), window.by_shard[:0], length_s)
        return window

    def _point(self, status: "MeshStatus", window: Window | None) -> Point:
        speeds = self.snapshot.speeds if self.snapshot is not None else {}
        return point_of(self._unix(), status.epoch, window, speeds, self.engines, self._in_flight())

    def _tick(self) -> None:
        self.ticks += 1
        ticked, self._ticked = self._ticked, asyncio.Event()
        ticked.set()
