"""How many requests of which job go to an engine now. Pure functions.

An engine is given what it computes at once and as much ahead, so that it never waits for the
runner, not even where all that it computes ends together; what online traffic holds of it, by the
engine's own report, is not given away. It is given a few requests at a time: each takes its HTTP
application milliseconds, and an online request that comes then waits for all of them. Between names
slots are shared in proportion to their shares, max-min: who wants less than its part leaves the
rest to the others. Of one name, jobs of a higher priority come first, and jobs of the same priority
share equally.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

AHEAD = 1.0
"""Requests that wait in an engine, as a part of those it computes at once."""
BURST = 16
"""Requests that an engine is given at a time."""
KV_LIMIT = 0.95
"""An engine whose KV cache is fuller gets no new batch requests while it computes any."""


@dataclass(frozen=True, slots=True)
class EngineView:
    """max_running: sequences it computes at once. online: requests of others that run or wait
    there. kv_used: part of its KV cache in use. ours: batch requests it has."""

    name: str
    max_running: int
    online: int
    kv_used: float
    ours: int


@dataclass(frozen=True, slots=True)
class JobView:
    """waiting: requests that can be begun. in_flight: requests that engines have."""

    seq: int
    owner: str
    priority: int
    waiting: int
    in_flight: int


def room(engine: EngineView) -> int:
    """Batch requests that the engine can be given on top of those it has."""
    if engine.kv_used > KV_LIMIT and engine.ours > 0:
        return 0
    ahead = max(1, math.ceil(engine.max_running * AHEAD))
    return max(0, engine.max_running + ahead - engine.online - engine.ours)


def allot(slots: int, jobs: Sequence[JobView], shares: Mapping[str, float]) -> dict[int, int]:
    """New requests of each job (by seq) for so many free slots. Names without a share have 1."""
    waiting = {job.seq: job.waiting for job in jobs}
    in_flight = {job.seq: job.in_flight for job in jobs}
    held: dict[str, float] = {}
    for job in jobs:
        held[job.owner] = held.get(job.owner, 0.0) + job.in_flight
    grants: dict[int, int] = {}
    for _ in range(slots):
        able = [job for job in jobs if waiting[job.seq] > 0]
        if not able:
            break
        owner = min((j.owner for j in able), key=lambda o: (held[o] / shares.get(o, 1.0), o))
        mine = [job for job in able if job.owner == owner]
        chosen = min(mine, key=lambda job: (-job.priority, in_flight[job.seq], job.seq))
        waiting[chosen.seq] -= 1
        in_flight[chosen.seq] += 1
        held[owner] += 1
        grants[chosen.seq] = grants.get(chosen.seq, 0) + 1
    return grants


def place(count: int, rooms: Mapping[str, int]) -> list[str]:
    """The engine of each of `count` requests: neighbours, which share prefixes, stay together."""
    places: list[str] = []
    for name, free in sorted(rooms.items(), key=lambda item: -item[1]):
        places += [name] * min(free, count - len(places))
    return places
