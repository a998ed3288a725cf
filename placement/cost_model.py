"""How long a device takes for a call: a constant, reading each expert's weights, and every row.

A grouped expert kernel is not linear in rows: starting it costs the same for few rows as for many,
and the weights of an expert are read once however many rows it gets. Taking rows alone for time
overloads devices with slow calls, and divides experts where one device reading them is cheaper.
Calibration fits this model, the dispatcher splits batches by it, and the planner, whose loads are
sums over many calls, takes it as a speed and an offset (`planner_speed`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter

import numpy as np
from numpy.typing import ArrayLike

from placement.types import FloatArray


@dataclass(frozen=True, slots=True)
class DeviceCost:
    """Measured cost of one call of the expert kernel; row_s > 0, the others >= 0."""

    call_s: float
    """Seconds of a call with hardly any work."""
    read_s: float
    """Further seconds for each distinct expert in the call."""
    row_s: float
    """Further seconds for each assignment, a row computed by one expert."""

    def seconds(self, experts: float, rows: float) -> float:
        """Predicted duration of one call with so many distinct experts and assignments."""
        return self.call_s + self.read_s * experts + self.row_s * rows

    def scaled(self, speed: float) -> DeviceCost:
        """The cost of a device that does everything `speed` times as fast."""
        return DeviceCost(self.call_s / speed, self.read_s / speed, self.row_s / speed)


@dataclass(frozen=True, slots=True)
class WayCost:
    """Of the way to a device: seconds of a small message there and back, and for each byte of a
    large one, either direction."""

    round_trip_s: float
    byte_s: float


def over_way(
    cost: DeviceCost, way: WayCost, row_bytes: int, rows_per_assignment: float
) -> DeviceCost:
    """What a call costs whoever waits for it at the other end of a way.

    row_bytes: of one row there and its sum back. rows_per_assignment: at most 1, less where a row
    meets several experts of the device, see `expected_reads`.
    """
    return DeviceCost(
        cost.call_s + way.round_trip_s,
        cost.read_s,
        cost.row_s + rows_per_assignment * row_bytes * way.byte_s,
    )


TYPICAL_COST = DeviceCost(call_s=50e-6, read_s=40e-6, row_s=5e-6)
"""Of a device whose config gives a relative speed of 1.0 in place of measurements: one core with
AVX512-BF16, bf16 weights, hidden 768, intermediate 384. Only the ratios matter to a split."""


def cost_table(costs: Sequence[DeviceCost], weights: Sequence[float]) -> FloatArray:
    """float64 [D, 3]: call_s, read_s and row_s of each shard over its weight.

    weights: how much of its speed a shard is counted on with; 0 makes its costs infinite, and it
    gets rows only where no other usable shard holds the expert.
    """
    parts = [list(map(attrgetter(name), costs)) for name in ("call_s", "read_s", "row_s")]
    table = np.full((len(costs), 3), np.inf)
    counted = np.array(weights, np.float64)[:, None]
    np.divide(np.array(parts).T, counted, out=table, where=counted > 0)
    return table


def fit_cost(experts: ArrayLike, rows: ArrayLike, seconds: ArrayLike) -> DeviceCost:
    """Fits a device's cost to measured calls; vary experts and rows independently of each other.

    Minimises the relative error, so that short calls count as much as long ones; no part comes out
    negative.

    Args:
        experts: [N] distinct experts of each call.
        rows: [N] assignments of each call.
        seconds: [N] its duration.

    Raises:
        ValueError: bad values, measurements that do not tell the three parts apart, or times that
            do not grow with rows.
    """
    e, x, y = (np.asarray(values, np.float64) for values in (experts, rows, seconds))
    if y.ndim != 1 or e.shape != y.shape or x.shape != y.shape:
        raise ValueError("fit_cost needs experts, rows and seconds [N] of equal length")
    if not (np.isfinite(e + x + y) & (e >= 0) & (x >= 0) & (y > 0)).all():
        raise ValueError("fit_cost needs finite experts and rows >= 0 and seconds > 0")
    columns = np.stack([np.ones_like(y), e, x], axis=1)
    if np.linalg.matrix_rank(columns / columns.max(axis=0)) < 3:
        raise ValueError("fit_cost needs calls of different experts and, apart from them, rows")
    call_s, read_s, row_s = _fit_non_negative(columns / y[:, None])
    if row_s <= 0:
        raise ValueError("fit_cost: measured time does not grow with rows; measure larger calls")
    return DeviceCost(call_s, read_s, row_s)


def _fit_non_negative(columns: FloatArray) -> tuple[float, float, float]:
    """Least squares of columns [N, 3] to ones, none negative: the best of all choices of columns.

    scipy's `nnls` does the same; importing it would cost a shard 30 MB.
    """
    best, least = np.zeros(3), np.inf
    for chosen in ([0, 1, 2], [0, 2], [1, 2], [2], [0, 1], [0], [1]):
        found = np.linalg.lstsq(columns[:, chosen], np.ones(len(columns)), rcond=None)[0]
        missed = float(((columns[:, chosen] @ found - 1.0) ** 2).sum())
        if (found >= 0).all() and missed < least:
            best, least = np.zeros(3), missed
            best[chosen] = found
    return float(best[0]), float(best[1]), float(best[2])


def planner_speed(
    costs: Sequence[DeviceCost], calls: float = 1.0, reads_per_row: float = 0.0
) -> tuple[FloatArray, FloatArray]:
    """(speed [D], offset [D]) for `plan_placement`, from measured costs.

    Speed is relative, 1.0 for the fastest. calls: calls per layer in the window whose tokens the
    load counts; the offset is what they cost, in tokens. reads_per_row: distinct experts for each
    assignment of a call, see `expected_reads`; reading them then counts as part of a row.
    """
    row_s = np.array([cost.row_s + reads_per_row * cost.read_s for cost in costs])
    call_s = np.array([cost.call_s for cost in costs])
    return row_s.min() / row_s, calls * call_s / row_s


def expected_reads(experts: int, rows: float) -> float:
    """Distinct experts for each of `rows` assignments that are spread evenly over `experts`.

    1.0 where every row meets an expert of its own, experts / rows in large calls.
    """
    return experts * (1.0 - (1.0 - 1.0 / experts) ** rows) / rows
