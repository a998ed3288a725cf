"""What the page and `/api/v1/telemetry` show of a look, as JSON values."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from numpy.typing import NDArray

from orchestrator.batch.figures import BatchFigures
from orchestrator.telemetry.engines import EngineFigures
from orchestrator.telemetry.happenings import Happening
from orchestrator.telemetry.snapshot import (
    Snapshot,
    Window,
    balancedness,
    expert_peak,
    hottest,
    overall_balancedness,
)

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Point:
    """One point of the page's curves. time_s: Unix time. assignments_per_s: all shards; shards: by
    id. balancedness: None without traffic. generated, prompted: tokens of all engines since they
    started."""

    time_s: float
    epoch: int
    assignments_per_s: float
    balancedness: float | None
    shards: Mapping[str, float]
    in_flight: int
    running: float
    waiting: float
    kv_used: float
    generated: float
    prompted: float


def point_of(
    time_s: float,
    epoch: int,
    window: Window | None,
    speeds: Mapping[str, float],
    engines: Mapping[str, EngineFigures],
    in_flight: int,
) -> Point:
    """window: None where the shards' loads are not known."""
    rates: dict[str, float] = {}
    balance = None
    if window is not None and window.length_s > 0:
        sums = window.by_shard.sum(axis=1)
        rates = {id: float(n) / window.length_s for id, n in zip(window.shards, sums, strict=True)}
        balance = _number(overall_balancedness(window, speeds))
    figures = list(engines.values())
    return Point(
        time_s,
        epoch,
        sum(rates.values()),
        balance,
        rates,
        in_flight,
        sum(f.running for f in figures),
        sum(f.waiting for f in figures),
        max((f.kv_used for f in figures), default=0.0),
        sum(f.generated for f in figures),
        sum(f.prompted for f in figures),
    )


def report(
    snapshot: Snapshot | None,
    age_s: float,
    silence_s: float,
    interval_s: float,
    points: Iterable[Point],
    engines: Mapping[str, EngineFigures],
    happened: Iterable[Happening],
    hot: int,
    batch: BatchFigures | None = None,
) -> dict[str, Any]:
    """points: those to send, all or the newest. snapshot: None before the first look."""
    said: dict[str, Any] = {
        "schema": SCHEMA,
        "age_s": round(age_s, 3),
        "controller_silence_s": round(silence_s, 3),
        "interval_s": interval_s,
        "points": [asdict(point) for point in points],
        "engines": {id: asdict(figures) for id, figures in engines.items()},
        "happenings": [asdict(happening) for happening in happened],
    }
    if batch is not None:
        said["batch"] = asdict(batch)
    if snapshot is not None:
        said |= _of_snapshot(snapshot, hot)
    return said


def _of_snapshot(snapshot: Snapshot, hot: int) -> dict[str, Any]:
    totals, window = snapshot.totals, snapshot.window
    said: dict[str, Any] = {
        "number": snapshot.number,
        "status": snapshot.mesh.model_dump(mode="json"),
        "layers": list(totals.layers),
        "experts": int(totals.counts.shape[1]),
        "traffic": [asdict(told) for told in snapshot.traffic],
        "assignments": {id: int(counts.sum()) for id, counts in totals.by_shard.items()},
    }
    if window is not None:
        speeds = snapshot.speeds
        said |= {
            "balancedness": _number(overall_balancedness(window, speeds)),
            "layer_balancedness": _numbers(balancedness(window, speeds)),
            "layer_peak": _numbers(expert_peak(window.counts)),
            "hot": [asdict(expert) for expert in hottest(window.counts, totals.layers, hot)],
        }
    return said


def _number(value: float) -> float | None:
    """JSON knows no NaN."""
    return None if math.isnan(value) else round(value, 4)


def _numbers(values: "NDArray[Any]") -> list[float | None]:
    return [_number(float(value)) for value in values]
