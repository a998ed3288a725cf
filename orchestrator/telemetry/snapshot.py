"""What is known of a mesh at one moment, and what follows from two of them.

Pure functions over arrays: no clock, no I/O. A snapshot is what metrics, page and API show; it is
made anew for each look and never changed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from orchestrator.api.models import ClusterView
from orchestrator.expert_load import TrafficTokens
from orchestrator.status import ComponentKind, ComponentStatus, MeshStatus

Counts = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Totals:
    """Assignments since this gateway began to look; a shard that starts anew takes nothing away.

    layers: the model's layer of each row. counts: [L, E] over all shards. by_shard: [L, E] each, as
    the shard last told it.
    """

    layers: tuple[int, ...] = ()
    counts: Counts = field(default_factory=lambda: np.zeros((0, 0), np.int64))
    by_shard: Mapping[str, Counts] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Window:
    """Load between two looks. counts: [L, E]; shards: ids; by_shard: [S, L]."""

    counts: Counts
    shards: tuple[str, ...]
    by_shard: Counts
    length_s: float

    @property
    def assignments(self) -> int:
        return int(self.counts.sum())


@dataclass(frozen=True, slots=True)
class HotExpert:
    """share: of its layer's load."""

    layer: int
    expert: int
    share: float


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """number: counts the looks. taken_s: when, on the gateway's clock. window: the last one with
    traffic, None before any. replicas: [L, E] copies of each expert; control: what the control
    plane says; None where nobody said. traffic: the kinds whose load is known by itself."""

    number: int
    taken_s: float
    mesh: MeshStatus
    totals: Totals
    window: Window | None
    replicas: NDArray[np.int32] | None = None
    control: ClusterView | None = None
    traffic: tuple[TrafficTokens, ...] = ()

    @property
    def shards(self) -> list[ComponentStatus]:
        return [c for c in self.mesh.components if c.kind is ComponentKind.SHARD]

    @property
    def speeds(self) -> dict[str, float]:
        """Relative speed of each shard; 1 where nobody said."""
        return {shard.id: shard.speed or 1.0 for shard in self.shards}


def advance(
    before: Totals, layers: tuple[int, ...], by_shard: Mapping[str, Counts], length_s: float
) -> tuple[Totals, Window]:
    """Totals after another look, and the load since the last one.

    A shard that was not asked, or did not answer, adds nothing now and all of it when it answers
    again; one whose counts went back was started anew and counts from zero.
    """
    shape = next(iter(by_shard.values())).shape if by_shard else before.counts.shape
    total = before.counts if before.counts.shape == shape else np.zeros(shape, np.int64)
    grown = {id: _growth(before.by_shard.get(id), now) for id, now in by_shard.items()}
    added = sum(grown.values(), np.zeros(shape, np.int64))
    rows = [growth.sum(axis=1) for growth in grown.values()]
    window = Window(
        added,
        tuple(grown),
        np.stack(rows) if rows else np.zeros((0, shape[0]), np.int64),
        length_s,
    )
    known = {**before.by_shard, **by_shard}
    return Totals(layers or before.layers, total + added, known), window


def _growth(before: Counts | None, now: Counts) -> Counts:
    if before is None or before.shape != now.shape or (now < before).any():
        return now
    return now - before


def balancedness(window: Window, speeds: Mapping[str, float]) -> NDArray[np.float64]:
    """[L] mean over largest time of the shards in each layer; NaN where a layer had no load.

    The time of a shard is its load over its speed; the mean is what all would take with the load
    split in proportion to their speeds.
    """
    speed = np.array([speeds.get(id, 1.0) for id in window.shards])
    if not len(speed):
        return np.full(window.counts.shape[0], np.nan)
    slowest = (window.by_shard / speed[:, None]).max(axis=0)
    ideal = window.by_shard.sum(axis=0) / speed.sum()
    return np.divide(ideal, slowest, out=np.full(len(ideal), np.nan), where=slowest > 0)


def overall_balancedness(window: Window, speeds: Mapping[str, float]) -> float:
    """The same over all layers, which run one after the other: sum of means over sum of largest."""
    speed = np.array([speeds.get(id, 1.0) for id in window.shards])
    if not len(speed) or not window.by_shard.sum():
        return float("nan")
    slowest = (window.by_shard / speed[:, None]).max(axis=0).sum()
    return float(window.by_shard.sum() / speed.sum() / slowest)


def expert_peak(counts: Counts) -> NDArray[np.float64]:
    """[L] load of the hottest expert over the layer's mean; NaN where a layer had no load."""
    mean = counts.mean(axis=1)
    return np.divide(counts.max(axis=1), mean, out=np.full(len(mean), np.nan), where=mean > 0)


def hottest(counts: Counts, layers: Sequence[int], most: int) -> list[HotExpert]:
    """The experts with the largest shares of their layers, largest first; none without load."""
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, totals, out=np.zeros(counts.shape), where=totals > 0)
    flat = shares.ravel()
    most = min(most, int(np.count_nonzero(flat)))
    if not most:
        return []
    top = np.argsort(-flat, kind="stable")[:most]
    experts = counts.shape[1]
    return [HotExpert(layers[i // experts], int(i % experts), float(flat[i])) for i in top]


def replica_histogram(replicas: NDArray[np.int32], most: int = 4) -> list[int]:
    """How many experts have 0, 1, ... `most` and more copies. replicas: [L, E]."""
    counted = np.bincount(np.minimum(replicas, most).ravel(), minlength=most + 1)
    return [int(number) for number in counted]
