"""Service times of both sides of a mesh: an engine's step without experts, and a shard's call.

A shard's call follows `cost_model`: a constant, reading each distinct expert, every row. Calls go
to all shards at once and the engine waits for the slowest, so what counts for it is the largest of
as many random times, taken as normal (the barrier of arXiv 2601.21351, which there is between
attention workers; engines of a mesh do not wait for each other).
"""

from dataclasses import dataclass
from functools import lru_cache
from math import erf, sqrt

import numpy as np

from placement.cost_model import DeviceCost

BF16_BYTES, FP32_BYTES = 2, 4
"""Of each value of a row on its way to a shard, and of a partial sum on its way back."""


@dataclass(frozen=True, slots=True)
class EngineCost:
    """Seconds of a step without its experts: a constant, each decoding row, each row of a prompt,
    each token of context that a decoding row attends to."""

    step_s: float
    row_s: float
    prompt_row_s: float
    context_s: float

    def seconds(self, rows: float, prompt_rows: float, context: float) -> float:
        """context: tokens that each of `rows` attends to."""
        own = self.row_s + self.context_s * context
        return self.step_s + own * rows + self.prompt_row_s * prompt_rows


@dataclass(frozen=True, slots=True)
class LinkCost:
    """round_trip_s: of a small call, all shards side by side. bytes_per_s: of an engine's
    connection, and of a shard's, each way; infinite where rows are not carried at all."""

    round_trip_s: float = 0.0
    engine_bytes_per_s: float = float("inf")
    shard_bytes_per_s: float = float("inf")


@dataclass(frozen=True, slots=True)
class ExpertSide:
    """Routed experts and the shards that hold them, all alike.

    cost: of a shard's calls. balancedness: of the placement, as the planner predicts it; the
    slowest shard has 1 / balancedness of the mean.
    """

    layers: int
    experts: int
    top_k: int
    hidden: int
    cost: DeviceCost
    links: LinkCost = LinkCost()
    balancedness: float = 1.0

    def call(self, rows: float, shards: int) -> "Call":
        """One layer of `rows` tokens, spread over `shards`."""
        held = self.experts / shards
        chance = self.top_k / self.experts
        read = 1.0 - (1.0 - chance) ** rows
        assignments = rows * self.top_k / shards
        mean_s = self.cost.seconds(held * read, assignments)
        work_s = mean_s - self.cost.call_s
        late_s = expected_largest(shards) * self._deviation_s(
            rows, shards, held * read * (1 - read)
        )
        carried = self.hidden * rows * _asked(self.top_k, shards)
        bytes_one_way = max(BF16_BYTES, FP32_BYTES) * carried
        return Call(
            mean_s=mean_s,
            slowest_s=self.cost.call_s + work_s / self.balancedness + late_s,
            link_s=self.links.round_trip_s
            + shards * (BF16_BYTES + FP32_BYTES) * carried / self.links.engine_bytes_per_s,
            shard_link_s=bytes_one_way / self.links.shard_bytes_per_s,
        )

    def _deviation_s(self, rows: float, shards: int, read_variance: float) -> float:
        """Of a shard's time, between calls: how many of its experts are asked for, and how often.
        Assignments of a call are as many for all shards together, hence the last factor."""
        if shards == 1:
            return 0.0
        part = 1.0 / shards
        apart = (self.experts - self.top_k) / max(self.experts - 1, 1)
        of_row = self.top_k * part * (1 - part) * apart
        asked = rows * of_row * shards / (shards - 1)
        return sqrt(self.cost.read_s**2 * read_variance + self.cost.row_s**2 * asked)


@dataclass(frozen=True, slots=True)
class Call:
    """Seconds of one layer's call. mean_s: that a shard is busy. slowest_s: until the last shard
    has computed. link_s: to carry rows and sums, which the engine waits for. shard_link_s: that a
    shard's connection is busy."""

    mean_s: float
    slowest_s: float
    link_s: float
    shard_link_s: float


def _asked(top_k: int, shards: int) -> float:
    """Part of the rows that a shard gets: those for which one of its experts was chosen."""
    return float(1.0 - (1.0 - 1.0 / shards) ** top_k)


@lru_cache
def expected_largest(count: int) -> float:
    """Mean of the largest of `count` independent standard normal numbers."""
    if count == 1:
        return 0.0
    points = np.linspace(-9.0, 9.0, 4001)
    below = np.array([0.5 * (1 + erf(x / sqrt(2))) for x in points])
    largest = below**count
    return float(((points[1:] + points[:-1]) / 2 * np.diff(largest)).sum())
