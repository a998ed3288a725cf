"""What telemetry does beside a mesh, in a process of its own, while it is told to.

The gateway's own application, joined to the session of a running mesh. `on`: it looks at
controller, shards and engines at the default interval, pushes OTLP to a collector, and is scraped
as often as `examples/observability` has it. `off`: it does nothing of this, but keeps its list of
engines up to date, as every gateway does. Orders come over stdin; each is answered by a line.

    python -m benchmarks.harness.telemetry_watch RAY_ADDRESS NAMESPACE OTLP_ENDPOINT
"""

import asyncio
import contextlib
import sys

SCRAPE_S = 5.0
READY = "ready"
NEVER_S = 3600.0


async def scrape(app: object) -> None:
    from tests.orchestrator.gateway.fakes import call

    while True:
        answer = await call(app, "GET", "/metrics")  # type: ignore[arg-type]
        assert b"expertmesh_balancedness" in answer.body or answer.status == 200
        await asyncio.sleep(SCRAPE_S)


async def watch(namespace: str, endpoint: str | None) -> None:
    """Until cancelled. endpoint: of the collector; None: no telemetry."""
    from orchestrator.clients.ray_mesh import RayMeshClient
    from orchestrator.cluster import CONTROLLER
    from orchestrator.config.telemetry import OtlpProtocol, TelemetryConfig
    from orchestrator.gateway.app import build_app
    from orchestrator.gateway.config import GatewayConfig

    telemetry = TelemetryConfig(interval_s=NEVER_S)
    if endpoint is not None:
        telemetry = TelemetryConfig(otlp_endpoint=endpoint, otlp_protocol=OtlpProtocol.HTTP)
    config = GatewayConfig(mesh="watch", model_name="any", telemetry=telemetry)
    app = build_app(config, RayMeshClient(CONTROLLER, namespace), frozenset())
    async with app.router.lifespan_context(app):
        await (scrape(app) if endpoint is not None else asyncio.sleep(NEVER_S))


async def main(namespace: str, endpoint: str) -> None:
    task: asyncio.Task[None] | None = None
    while order := (await asyncio.to_thread(sys.stdin.readline)).strip():
        if task is not None:
            if task.done():
                task.result()
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        task = asyncio.create_task(watch(namespace, endpoint if order == "on" else None))
        print(READY, flush=True)


if __name__ == "__main__":
    import ray

    address, name, collector = sys.argv[1:]
    ray.init(address, namespace=name, log_to_driver=False, logging_level="ERROR")
    print(READY, flush=True)
    asyncio.run(main(name, collector))
