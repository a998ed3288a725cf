"""How long a device takes for a layer: a constant per call plus a slope per token.

A grouped expert kernel is not linear in tokens: launching it, and reading the weights once, costs
the same for few tokens as for many. Taking tokens alone for time overloads devices with slow calls.
The planner and the split handle the constant as an offset in tokens, so both stay exact.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from placement.types import FloatArray


@dataclass(frozen=True, slots=True)
class DeviceCost:
    """Measured cost of one call of the expert kernel."""

    call_s: float
    """Seconds of a call with hardly any tokens."""
    token_s: float
    """Further seconds per token."""

    def seconds(self, tokens: float) -> float:
        """Predicted duration of one call."""
        return self.call_s + self.token_s * tokens


def fit_cost(tokens: ArrayLike, seconds: ArrayLike) -> DeviceCost:
    """Fits a device's cost to measured calls: tokens [N], seconds [N], at least two token counts.

    Minimises the relative error, so that short calls count as much as long ones. A constant that
    would come out negative is zero.

    Raises:
        ValueError: too few, non-positive or non-increasing measurements.
    """
    x = np.asarray(tokens, np.float64)
    y = np.asarray(seconds, np.float64)
    if x.ndim != 1 or x.shape != y.shape or np.unique(x).size < 2:
        raise ValueError("fit_cost needs tokens and seconds of two different token counts or more")
    if not (np.isfinite(x) & np.isfinite(y) & (x >= 0) & (y > 0)).all():
        raise ValueError("fit_cost needs finite tokens >= 0 and seconds > 0")
    weight = 1.0 / y
    columns = np.stack([weight, x * weight], axis=1)
    call_s, token_s = np.linalg.lstsq(columns, np.ones_like(y), rcond=None)[0]
    if call_s < 0:
        call_s, token_s = 0.0, float((x * weight).sum() / ((x * weight) ** 2).sum())
    if token_s <= 0:
        raise ValueError("fit_cost: measured time does not grow with tokens; measure larger calls")
    return DeviceCost(float(call_s), float(token_s))


def planner_speed(costs: list[DeviceCost], calls: float = 1.0) -> tuple[FloatArray, FloatArray]:
    """(speed [D], offset [D]) for `plan_placement`, from measured costs.

    Speed is relative, 1.0 for the fastest. calls: calls per layer in the window whose tokens the
    load counts; the offset is what they cost, in tokens.
    """
    token_s = np.array([cost.token_s for cost in costs])
    call_s = np.array([cost.call_s for cost in costs])
    return token_s.min() / token_s, calls * call_s / token_s
