"""What the controller said last, for the time when it says nothing.

The gateway asks for the view of the mesh every few seconds and for the placement when its epoch is
another, so that there is something to show even where nobody asked while the controller lived.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from orchestrator.api.models import ClusterView, EventView, PlacementView
from orchestrator.clients.mesh import MeshClient, MeshLostError

logger = logging.getLogger(__name__)

ASK_TIMEOUT_S = 2.0
"""A controller that takes longer counts as silent: its last word is shown."""

POLL_S = 2.0
EVENTS_KEPT = 1000

T = TypeVar("T")


class NothingKnown(Exception):
    """The controller is silent and never spoke to this gateway."""


@dataclass(frozen=True, slots=True)
class Known(Generic[T]):
    """stale_s: how old it is; 0 where the controller has just said it."""

    value: T
    stale_s: float


class LastKnown:
    """Asks the controller, and remembers."""

    def __init__(self, mesh: MeshClient, clock: Callable[[], float] = time.monotonic) -> None:
        self._mesh = mesh
        self._clock = clock
        self._said: dict[str, tuple[Any, float]] = {}

    async def cluster(self) -> Known[ClusterView]:
        """Raises NothingKnown."""
        return await self._ask("cluster", self._mesh.view)

    async def placement(self) -> Known[PlacementView]:
        """Raises NothingKnown."""
        return await self._ask("placement", self._mesh.placement)

    async def events(self) -> Known[list[EventView]]:
        """The newest lines of history, oldest first. Raises NothingKnown."""
        return await self._ask("events", lambda: self._mesh.history(-EVENTS_KEPT, EVENTS_KEPT))

    async def poll(self) -> None:
        """Keep it up to date for as long as the gateway runs."""
        epoch = None
        while True:
            try:
                known = await self.cluster()
                if known.stale_s == 0 and known.value.epoch != epoch:
                    await self.placement()
                    await self.events()
                    epoch = known.value.epoch
            except NothingKnown:
                pass
            except Exception:
                logger.exception("the view of the mesh could not be read; trying again")
            await asyncio.sleep(POLL_S)

    async def _ask(self, what: str, ask: Callable[[], Awaitable[T]]) -> Known[T]:
        try:
            async with asyncio.timeout(ASK_TIMEOUT_S):
                value = await ask()
        except (MeshLostError, TimeoutError) as error:
            if what not in self._said:
                raise NothingKnown(str(error) or "the controller does not answer") from error
            value, said_s = self._said[what]
            return Known(value, max(self._clock() - said_s, 0.001))
        self._said[what] = (value, self._clock())
        return Known(value, 0.0)
