"""The best split of a batch by integer programming: what the served one is held against."""

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_matrix


def shard_seconds(shards: np.ndarray, quota: np.ndarray, cost: np.ndarray) -> np.ndarray:
    """[D] time of each shard's call when replica r, on shards[r], computes quota[r] rows."""
    rows = np.bincount(shards, quota, minlength=cost.shape[0])
    experts = np.bincount(shards, quota > 0, minlength=cost.shape[0])
    return (rows > 0) * cost[:, 0] + experts * cost[:, 1] + rows * cost[:, 2]


def least_seconds(
    counts: np.ndarray,
    start: np.ndarray,
    shards: np.ndarray,
    cost: np.ndarray,
    gap: float = 1e-4,
    limit_s: float = 20.0,
    whole_rows: bool = False,
) -> float:
    """A lower bound, within `gap` of the least time of the slowest shard where time allows.

    counts: [E]; start, shards: see `choose_replicas`; cost: float64 [D, 3], finite.
    whole_rows: else rows may be divided, which is solved sooner.

    Variables, of the R replicas of experts in the batch: read [R] binary, part [R] rows; then
    called [D] binary, and the time.
    """
    owner = np.repeat(np.arange(counts.size), np.diff(start))
    chosen = np.flatnonzero(counts[owner] > 0)
    owner, place = owner[chosen], shards[chosen]
    R, D = chosen.size, cost.shape[0]
    unit = float(cost[:, 2].min())
    most = counts[owner].astype(float)
    read, part, called = np.arange(R), R + np.arange(R), 2 * R + np.arange(D)
    time = 2 * R + D
    columns: list[np.ndarray] = []
    rows: list[np.ndarray] = []
    values: list[np.ndarray] = []
    low: list[float] = []
    high: list[float] = []

    def constrain(where: np.ndarray, factors: np.ndarray, least: float, most: float) -> None:
        rows.append(np.full(where.size, len(low)))
        columns.append(where)
        values.append(factors)
        low.append(least)
        high.append(most)

    for r in range(R):
        constrain(np.array([part[r], read[r]]), np.array([1.0, -most[r]]), -np.inf, 0.0)
        constrain(np.array([read[r], called[place[r]]]), np.array([1.0, -1.0]), -np.inf, 0.0)
    for expert in np.unique(owner):
        mine = np.flatnonzero(owner == expert)
        constrain(part[mine], np.ones(mine.size), counts[expert], counts[expert])
        constrain(read[mine], np.ones(mine.size), 1.0, np.inf)
    for d in range(D):
        mine = np.flatnonzero(place == d)
        factors = [
            np.full(mine.size, cost[d, 1] / unit),
            np.full(mine.size, cost[d, 2] / unit),
            np.array([cost[d, 0] / unit, -1.0]),
        ]
        constrain(
            np.concatenate([read[mine], part[mine], [called[d], time]]),
            np.concatenate(factors), -np.inf, 0.0,
        )  # fmt: skip
    matrix = coo_matrix(
        (np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))),
        shape=(len(low), time + 1),
    )
    objective = np.zeros(time + 1)
    objective[time] = 1.0
    found = milp(
        objective,
        constraints=LinearConstraint(matrix.tocsr(), low, high),
        bounds=Bounds(0.0, np.concatenate([np.ones(R), most, np.ones(D), [np.inf]])),
        integrality=np.concatenate([np.ones(R), np.full(R, float(whole_rows)), np.ones(D), [0.0]]),
        options={"mip_rel_gap": gap, "time_limit": limit_s},
    )
    return float(found.mip_dual_bound) * unit
