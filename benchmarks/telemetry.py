"""What looking at a large mesh costs the gateway: `python -m benchmarks.telemetry`.

61 layers of 384 experts on 64 and 256 shards, whose counts are made up and do move. All of it runs
in threads beside the loop that carries tokens.
"""

import asyncio
import statistics
import time
from collections.abc import Callable

from orchestrator.config.telemetry import TelemetryConfig
from orchestrator.gateway.metrics import page_of
from orchestrator.telemetry.observer import Observer
from orchestrator.telemetry.snapshot import advance
from tests.dashboards.moving_mesh import MovingMesh, moving_mesh

LAYERS, EXPERTS = 61, 384
SHARDS = (64, 256)
ROUNDS = 15
MS = 1e3


def median_ms(work: Callable[[], object]) -> float:
    """Of `ROUNDS` calls, after one that is not counted."""
    work()
    times = []
    for _ in range(ROUNDS):
        began_s = time.perf_counter()
        work()
        times.append(time.perf_counter() - began_s)
    return statistics.median(times) * MS


async def _looked(mesh: MovingMesh) -> Observer:
    async def pages() -> dict[str, str]:
        return {id: engine.metrics_page for id, engine in mesh.fakes.items()}

    observer = Observer(TelemetryConfig(), mesh, pages, lambda: 0)
    for _ in range(3):
        await observer.look()
    return observer


def measure(shards: int) -> None:
    """Print one line for a mesh of so many shards."""
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
    print(
        f"{shards} shards: taking in one look {look:.1f} ms, a scrape {scrape:.1f} ms with "
        f"{series} series, the matrix {encode:.1f} ms: {len(totals) / 1e3:.0f} kB of totals, "
        f"{len(added) / 1e3:.0f} kB of one window"
    )


if __name__ == "__main__":
    for count in SHARDS:
        measure(count)
