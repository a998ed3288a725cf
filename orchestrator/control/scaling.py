"""How many shards a pool and how many engines the mesh should have. Pure; one change at a time.

Up fast: at once when the signal is beyond its limit. Down slowly: only after `DOWN_FACTOR` times
the cooldown, and only to `least`. Engines follow the requests that wait (gateway and vLLM) and
the KV cache in use; pools of shards follow how busy their shards are.
"""

from dataclasses import dataclass

from orchestrator.control.settings import PoolLimits
from orchestrator.control.state import EngineLoad

WAITING_PER_ENGINE = 4
"""Requests that wait per engine before another engine is added."""

KV_FULL = 0.9
KV_IDLE = 0.3
"""Parts of the KV cache in use above which an engine is added, below which one may go."""

BUSY = 0.8
IDLE = 0.3
"""Parts of the time that shards compute, likewise."""

DOWN_FACTOR = 5


@dataclass(frozen=True, slots=True)
class Size:
    """number: how many there should be. reason: seen, decided, and what would have changed it."""

    number: int
    reason: str


def engines_wanted(number: int, load: EngineLoad, limits: PoolLimits, since_s: float) -> Size:
    """number: engines now, or being started; since_s: since the last change."""
    limit = WAITING_PER_ENGINE * number
    seen = f"{load.waiting} requests wait, {load.kv_used:.0%} of the KV cache is in use"
    if load.waiting > limit or load.kv_used > KV_FULL:
        return _up(number, limits, since_s, f"{seen} (limits {limit}, {KV_FULL:.0%})")
    if not load.waiting and load.kv_used < KV_IDLE:
        return _down(
            number, limits, since_s, f"{seen} (a waiting request or {KV_IDLE:.0%} keep it)"
        )
    return Size(number, f"{seen}: between the limits")


def shards_wanted(number: int, busy: float, limits: PoolLimits, since_s: float) -> Size:
    """busy: part of the time the pool's shards computed, on average."""
    seen = f"shards computed for {busy:.0%} of the time"
    if busy > BUSY:
        return _up(number, limits, since_s, f"{seen} (limit {BUSY:.0%})")
    if busy < IDLE:
        return _down(number, limits, since_s, f"{seen} ({IDLE:.0%} keep them)")
    return Size(number, f"{seen}: between the limits")


def _up(number: int, limits: PoolLimits, since_s: float, seen: str) -> Size:
    if number >= limits.most:
        return Size(number, f"{seen}: no more than {limits.most} are allowed")
    if since_s < limits.cooldown_s:
        return Size(number, f"{seen}: last changed {since_s:.0f} s ago")
    return Size(number + 1, f"{seen}: one more")


def _down(number: int, limits: PoolLimits, since_s: float, seen: str) -> Size:
    pause_s = DOWN_FACTOR * limits.cooldown_s
    if number <= limits.least:
        return Size(number, f"{seen}: no fewer than {limits.least} are allowed")
    if since_s < pause_s:
        return Size(number, f"{seen}: fewer only {pause_s:.0f} s after the last change")
    return Size(number - 1, f"{seen}: one less")
