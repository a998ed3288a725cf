"""What telemetry costs: `python -m benchmarks.telemetry [--parts looks,traffic,spans,throughput]`.

looks       of the gateway at a large mesh, 61 layers of 384 experts on 64 and 256 shards whose
            counts are made up and do move. All of it runs in threads beside the loop that carries
            tokens. Times are of the CPU, so other load matters little.
traffic     steps of an engine whose assignments are counted by kind of traffic, at 61 layers of 384
            experts: CPU time.
spans       calls of experts with spans of sampled steps, over calls without, in turns.
throughput  one engine while a gateway looks, is scraped and pushes OTLP, against without, in turns:
            tokens per second, and CPU time that is added (`harness.telemetry_paired`).
"""

import argparse
import asyncio
import statistics
import time
from collections.abc import Callable
from typing import Any

from actors.dispatch.report import Tally
from benchmarks.harness import telemetry_paired, telemetry_spans, telemetry_traffic
from benchmarks.harness.bare_shards import BareMesh
from benchmarks.harness.report import Report, Target, run_benchmark
from orchestrator.batch.figures import BatchFigures
from orchestrator.batch.states import JobState
from orchestrator.config.telemetry import TelemetryConfig
from orchestrator.gateway.metrics import page_of
from orchestrator.telemetry.observer import Observer
from orchestrator.telemetry.snapshot import advance
from tests.dashboards.moving_mesh import MovingMesh, moving_mesh

LAYERS, EXPERTS = 61, 384
SHARDS = (64, 256)
ROUNDS = 15
MS = 1e3
PARTS = ("looks", "traffic", "spans", "throughput")
PAIRS, QUICK_PAIRS = 10, 4
LOSS_GOAL = 0.01
"""Of throughput and of CPU time, to telemetry."""
NOTHING = 1.02
"""Ratio of two ways to do the same, as far as rounds of one run can tell."""


def median_ms(work: Callable[[], object]) -> float:
    """CPU time of one of `ROUNDS` calls, after one that is not counted."""
    work()
    times = []
    for _ in range(ROUNDS):
        began_s = time.thread_time()
        work()
        times.append(time.thread_time() - began_s)
    return statistics.median(times) * MS


async def _looked(mesh: MovingMesh) -> Observer:
    batch = BatchFigures({state.value: 1 for state in JobState})
    observer = Observer(TelemetryConfig(), mesh, dict, lambda: 0, batch=lambda: batch)
    for _ in range(3):
        await observer.look()
    return observer


def measure_looks(shards: int) -> dict[str, Any]:
    """One row for a mesh of so many shards."""
    mesh = moving_mesh(num_layers=LAYERS, num_experts=EXPERTS, num_shards=shards)
    observer = asyncio.run(_looked(mesh))
    assert observer.snapshot is not None
    families = observer.families(0.0)
    series = sum(len(family.samples) for family in families)
    by_shard = observer.snapshot.totals.by_shard
    layers = observer.snapshot.totals.layers
    look = median_ms(lambda: advance(observer.snapshot.totals, layers, by_shard, 1.0))
    scrape = median_ms(lambda: page_of(observer.families(0.0), ""))
    number = observer.snapshot.number
    totals, added = observer.matrix(0, None), observer.matrix(number - 1, None)
    encode = median_ms(lambda: observer.matrix(0, None))
    return {
        "shards": shards,
        "look_ms": look,
        "scrape_ms": scrape,
        "series": series,
        "matrix_ms": encode,
        "totals_kb": len(totals) / 1e3,
        "window_kb": len(added) / 1e3,
    }


def count_calls(calls: int = 200_000) -> float:
    """Microseconds that counting one call of experts costs a dispatcher: what `send` and `wait` do
    for it beside their work."""
    tally = Tally()
    began_s = time.thread_time()
    for _ in range(calls):
        start_s = time.monotonic()
        tally.sent.add(time.monotonic() - start_s)
        start_s = time.monotonic()
        tally.calls += 1
        tally.waited.add(time.monotonic() - start_s)
    return (time.thread_time() - began_s) / calls * 1e6


def looks() -> tuple[list[dict[str, Any]], list[Target]]:
    rows = [measure_looks(shards) for shards in SHARDS]
    largest = rows[-1]
    return [*rows, {"counting a call of experts, us": count_calls()}], [
        Target("series at 256 shards", largest["series"], 2000, "max", ""),
        Target("a scrape then", largest["scrape_ms"], 200, "max", "ms", timed=True),
        Target("the matrix", largest["totals_kb"], 150, "max", "kB"),
    ]


def traffic() -> tuple[list[dict[str, Any]], list[Target]]:
    rows = telemetry_traffic.measure(LAYERS, EXPERTS)
    name = "of a second to count traffic, decode of 64"
    return rows, [Target(name, rows[0]["of a second"], LOSS_GOAL, "max", "", timed=True)]


def spans() -> tuple[list[dict[str, Any]], list[Target]]:
    rows = telemetry_spans.measure(BareMesh())
    ratios = {row["way"]: row["p50_ratio"] for row in rows}
    return rows, [
        Target(f"a call, {way}, over one without", ratios[way], NOTHING, "max", "x", timed=True)
        for way, ratio in telemetry_spans.RATIOS.items()
        if ratio < 1
    ]


def throughput(pairs: int) -> tuple[list[dict[str, Any]], list[Target]]:
    rows = telemetry_paired.measure(pairs)
    lost = {
        "throughput lost to telemetry": [1 - row["ratio"] for row in rows],
        "CPU time added by telemetry": [row["added"] for row in rows],
    }
    targets, summary = [], []
    for name, losses in lost.items():
        low, middle, high = statistics.quantiles(losses, n=4)
        summary.append(
            {
                "part": name,
                "pairs": pairs,
                "median": middle,
                "quartiles": f"{low:.3f} to {high:.3f}",
            }
        )
        targets.append(Target(name, middle, LOSS_GOAL, "max", "", timed=True))
    return [*rows, *summary], targets


def measure(arguments: argparse.Namespace) -> Report:
    pairs = QUICK_PAIRS if arguments.quick else PAIRS
    parts = {
        "looks": looks,
        "traffic": traffic,
        "spans": spans,
        "throughput": lambda: throughput(pairs),
    }
    runs: list[dict[str, Any]] = []
    targets: list[Target] = []
    for part in arguments.parts.split(","):
        rows, wanted = parts[part]()
        runs += rows
        targets += wanted
    return Report("telemetry", runs, targets)


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--parts", default=",".join(PARTS))


if __name__ == "__main__":
    run_benchmark(__doc__ or "", measure, options)
