"""What each expert was asked for: counts of the shards, window by window, for plans and people.

Shards count from the start of their process. Here the differences are added up by incarnation, so
the totals outlive a shard, and one that dies takes one window along at most. They outlive the
controller too: shards that live tell the next one all that they counted, and what ended ones did is
handed to `keep`.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from ray.actor import ActorHandle
from ray.exceptions import RayError

from actors.descriptions import ShardDescription
from orchestrator.control.lifecycle import SERVING, Kind
from orchestrator.control.state import State
from orchestrator.root_cause import cause_of
from orchestrator.runtime.components import RayComponents

log = logging.getLogger(__name__)

Counts = NDArray[np.int64]
"""[L, E] assignments."""


@dataclass(frozen=True, slots=True, eq=False)
class Window:
    """counts: [L, E] assignments of all shards; busy: part of it each shard computed in."""

    counts: Counts
    busy: dict[str, float]


@dataclass(slots=True)
class _Seen:
    """Of one incarnation, what was counted last."""

    incarnation: int
    counts: Counts
    busy_s: float
    at_s: float


@dataclass(slots=True)
class LoadCollector:
    """ended: by shard id, what processes counted that are gone; keep: is given it, in a thread,
    whenever it has changed."""

    shape: tuple[int, int]
    timeout_s: float
    clock: Callable[[], float]
    ended: dict[str, Counts] = field(default_factory=dict)
    keep: Callable[[Mapping[str, Counts]], None] = lambda _: None
    _unkept: bool = False
    _seen: dict[str, _Seen] = field(default_factory=dict)

    async def collect(self, state: State, components: RayComponents) -> Window:
        """Ask every shard that serves, side by side. One that does not answer counts for nothing
        now and for all of it later."""
        shards: dict[str, tuple[ActorHandle, ShardDescription]] = {}
        for id, component in state.facts.components.items():
            place = state.intent.places.get(id)
            handle = components.handle(id, component.generation)
            said = components.said(id, component.generation)
            if place is None or place.kind is not Kind.SHARD or component.life not in SERVING:
                continue
            if handle is not None and isinstance(said, ShardDescription):
                shards[id] = (handle, said)
        for gone in self._seen.keys() - state.intent.places.keys():
            self._end(gone)
        answers = await asyncio.gather(*(self._ask(id, *shards[id]) for id in shards))
        counts = np.zeros(self.shape, np.int64)
        busy = {}
        for id, answer in zip(shards, answers, strict=True):
            if answer is not None:
                new, busy[id] = self.take(id, *answer)
                counts += new
        if self._unkept:
            self._unkept = False
            await asyncio.to_thread(self.keep, dict(self.ended))
        return Window(counts, busy)

    @property
    def totals(self) -> dict[str, Counts]:
        """By shard id, since the mesh began."""
        totals = dict(self.ended)
        for id, seen in self._seen.items():
            totals[id] = totals[id] + seen.counts if id in totals else seen.counts
        return totals

    def _end(self, id: str) -> None:
        """The process that counted last as this shard is gone."""
        self.ended[id] = self.ended.get(id, 0) + self._seen.pop(id).counts
        self._unkept = True

    def take(
        self, id: str, incarnation: int, counts: Counts, busy_s: float
    ) -> tuple[Counts, float]:
        """What is new in a shard's counts, and the part of the time since that it computed in."""
        now_s, before = self.clock(), self._seen.get(id)
        if before is not None and before.incarnation != incarnation:
            self._end(id)
            before = None
        self._seen[id] = _Seen(incarnation, counts, busy_s, now_s)
        if before is None:
            before = _Seen(incarnation, np.zeros(self.shape, np.int64), 0.0, now_s)
        new = counts - before.counts
        window_s = now_s - before.at_s
        return new, min(1.0, (busy_s - before.busy_s) / window_s) if window_s > 0 else 0.0

    async def _ask(
        self, id: str, handle: ActorHandle, said: ShardDescription
    ) -> tuple[int, Counts, float] | None:
        try:
            async with asyncio.timeout(self.timeout_s):
                counts: Counts = await handle.load_counts.remote()
        except (TimeoutError, RayError) as error:
            cause = cause_of(error) if isinstance(error, RayError) else "no answer in time"
            log.debug("no load counts from shard %s: %s", id, cause)
            return None
        return said.incarnation, counts, said.busy_s
