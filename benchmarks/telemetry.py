"""What looking at a large mesh costs the gateway: `python -m benchmarks.telemetry`.

61 layers of 384 experts on 64 and 256 shards, whose counts are made up and do move. All of it runs
in threads beside the loop that carries tokens. Times are of the CPU, so other load matters little.
"""

import asyncio
import statistics
import time
from collections.abc import Callable

from actors.dispatch.report import Tally
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
    async def pages() -> dict[str, str]:
        return {id: engine.metrics_page for id, engine in mesh.fakes.items()}

    batch = BatchFigures({state.value: 1 for state in JobState})
    observer = Observer(TelemetryConfig(), mesh, pages, lambda: 0, batch=lambda: batch)
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


if __name__ == "__main__":
    for count in SHARDS:
        measure(count)
    print(f"counting a call of experts {count_calls():.2f} us")
