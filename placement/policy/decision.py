"""Keep, nudge or re-plan: what to do about a load that is not the one planned for.

Three questions in turn. How well would the placement that is loaded serve the new load? If nearly
as well as any could, keep it: copies cost bandwidth and gain nothing. How far has the load moved
since it was planned? A little: nudge, some copies per layer. A lot in many layers, or a nudge that
would leave much undone: re-plan.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import ArrayLike

from placement.search.bounds import layer_bounds
from placement.search.flow import layer_times
from placement.types import FloatArray
from placement.validation import check_experts, check_load, check_problem

KEEP_GAP = 0.015
"""A placement whose predicted balancedness is this near to what is possible is kept."""

REPLAN_GAP = 0.3
"""A gap that no budget of a few copies per layer closes."""

REPLAN_CHANGE = 0.25
"""Part of a layer's tokens that changed expert: then its plan is for another load."""

REPLAN_LAYERS = 0.5
"""Part of the layers that must have changed so for a re-plan."""


class Action(Enum):
    """What to do with the placement."""

    KEEP = "keep"
    NUDGE = "nudge"
    REPLAN = "re-plan"


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do, and why."""

    action: Action
    reason: str
    balancedness: float
    """Predicted, of the placement as it is."""
    possible: float
    """Ceiling for any placement."""
    change: FloatArray
    """[L] part of the tokens that changed expert since the plan."""


def decide(
    load: ArrayLike,
    planned: ArrayLike,
    experts: ArrayLike,
    speed: ArrayLike,
    slots: ArrayLike,
    offset: ArrayLike | None = None,
) -> Decision:
    """Weighs the placement `experts` [L, D, S] against `load` [L, E].

    planned: [L, E] the load of the last full plan, whatever nudges followed; only its shape counts.
    speed: [D]; slots: [D] or [L, D]; offset: [D] constant cost per layer, in tokens.

    Raises `ValueError` for input that does not fit.
    """
    problem = check_problem(load, speed, slots, offset=offset)
    now = problem.load
    before = check_load(planned, "planned")
    L, E = now.shape
    if before.shape != now.shape:
        raise ValueError(f"planned has shape {before.shape}, load has {now.shape}")
    placed = check_experts(experts, L, problem.devices, E, "experts")
    change = np.abs(_normal(now) - _normal(before)).sum(axis=1) / 2
    bounds = layer_bounds(problem)
    times = layer_times(placed, problem)
    ideal = (now.sum() + L * problem.offset.sum()) / problem.speed.sum()
    found = float(ideal / times.sum()) if times.any() else 1.0
    possible = float(ideal / bounds.sum()) if bounds.any() else 1.0
    gap = 1 - found / possible
    moved = float((change > REPLAN_CHANGE).mean())
    figures = f"balancedness {found:.3f} of {possible:.3f} possible"
    if gap <= KEEP_GAP:
        action, why = Action.KEEP, f"{figures}: no copy would pay"
    elif moved >= REPLAN_LAYERS:
        action = Action.REPLAN
        why = f"{figures}; over {REPLAN_CHANGE:.0%} of the load moved in {moved:.0%} of the layers"
    elif gap > REPLAN_GAP:
        action, why = Action.REPLAN, f"{figures}: too far for a few copies"
    else:
        action = Action.NUDGE
        why = f"{figures}; load moved by {float(change.mean()):.1%} per layer"
    return Decision(action, why, found, possible, change)


def _normal(load: FloatArray) -> FloatArray:
    total = load.sum(axis=1, keepdims=True)
    return load / np.where(total > 0, total, 1.0)
