"""The placement policies: what becomes of a placement when the load is known anew.

A policy is a pure function of a `Situation`. `expertmesh simulate` replays a recorded load through
all of `POLICIES`; a running mesh follows `decided`. One more policy is one function, in a module of
its own where it is long, and one line in `POLICIES`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from placement.planner import plan_placement
from placement.policy.decision import Action, Decision, decide
from placement.types import FloatArray, IntArray, Placement

MOVED_MOST = 0.25
"""Part of a layer's copies that may be moved before planning from nothing is considered."""

MOVED_LEAVES = 0.03
"""Part of what is possible that they may leave undone; nudges that follow do the rest."""


@dataclass(frozen=True, slots=True, eq=False)
class Situation:
    """What a policy may know."""

    load: FloatArray
    """[L, E] tokens expected."""
    speed: FloatArray
    """[D]"""
    slots: NDArray[np.int64]
    """[D] or [L, D]"""
    current: IntArray | None
    """[L, D, S] what is loaded; None before the first placement."""
    planned_load: FloatArray | None
    """[L, E] what the last full plan was made for; None where unknown."""
    counts: FloatArray
    """[L, E] tokens of the newest window alone."""
    nudge_copies: int = 3
    """Copies per layer that a nudge may load."""
    min_copies: int = 1
    offset: FloatArray | None = None
    """[D] constant cost per layer, in tokens; None for none."""
    failure_domains: NDArray[np.int64] | None = None
    """[D] see `plan_placement`; None: every device its own."""


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """What a policy wants. placement: None keeps what is loaded; reason: one line for people."""

    action: Action
    placement: Placement | None
    reason: str


Policy = Callable[[Situation], Step]


def fixed(seen: Situation) -> Step:
    """Plans once and never again."""
    if seen.current is None:
        return _replan(seen, seen.counts, "the first plan")
    return Step(Action.KEEP, None, "planned once")


def replanned(seen: Situation) -> Step:
    """Plans anew from every window's counts."""
    return _replan(seen, seen.counts, "planned in every window")


def nudged(seen: Situation) -> Step:
    """Changes some copies per layer in every window."""
    return _nudge(seen, seen.counts, "nudged in every window")


def decided(seen: Situation) -> Step:
    """Keeps, nudges or re-plans for the expected load, as `decision.decide` says."""
    if seen.current is None or seen.planned_load is None:
        return _replan(seen, seen.load, "the first plan")
    decision = decide(
        seen.load, seen.planned_load, seen.current, seen.speed, seen.slots, seen.offset
    )
    if decision.action is Action.KEEP:
        return Step(Action.KEEP, None, decision.reason)
    if decision.action is Action.NUDGE:
        return _nudge(seen, seen.load, decision.reason)
    return _moved(seen, decision) or _replan(seen, seen.load, decision.reason)


def _moved(seen: Situation, decision: Decision) -> Step | None:
    """As many copies as gain something, where they do about as well as planning from nothing, which
    moves nearly all; None where they do not."""
    slots = np.broadcast_to(seen.slots, (len(seen.load), len(seen.speed))).sum(axis=1).max()
    placement = _plan(seen, seen.load, int(slots * MOVED_MOST))
    left = 1 - placement.balancedness / decision.possible
    if left > MOVED_LEAVES:
        return None
    return Step(Action.NUDGE, placement, f"{decision.reason}; some copies leave {left:.1%} of it")


POLICIES: dict[str, Policy] = {
    "plan once": fixed,
    "re-plan every window": replanned,
    "nudge every window": nudged,
    "keep, nudge or re-plan": decided,
}


def _replan(seen: Situation, load: FloatArray, reason: str) -> Step:
    return Step(Action.REPLAN, _plan(seen, load), reason)


def _nudge(seen: Situation, load: FloatArray, reason: str) -> Step:
    return Step(Action.NUDGE, _plan(seen, load, seen.nudge_copies), reason)


def _plan(seen: Situation, load: FloatArray, copies: int | None = None) -> Placement:
    """copies: per layer that may be loaded at most; None: any number."""
    return plan_placement(
        load,
        seen.speed,
        seen.slots,
        current=seen.current,
        max_moves_per_layer=copies,
        offset=seen.offset,
        min_copies=seen.min_copies,
        failure_domains=seen.failure_domains,
    )
