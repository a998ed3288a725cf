"""The gateway's HTTP application: OpenAI's routes, health, metrics and the state of the mesh."""

import asyncio
import logging
import os
import platform
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from prometheus_client.core import Metric
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Lifespan

from actors.messages import HttpRequest, ResponseStart
from orchestrator.api.errors import error_response, unavailable
from orchestrator.batch.routes import BatchRoutes
from orchestrator.clients.engine_pool import EnginePool, PooledEngine
from orchestrator.clients.mesh import EngineError, MeshClient, MeshLostError
from orchestrator.gateway.admin import AdminCheck
from orchestrator.gateway.api_routes import Api
from orchestrator.gateway.auth import KeyCheck
from orchestrator.gateway.body_window import Consumption
from orchestrator.gateway.config import GatewayConfig
from orchestrator.gateway.hung_controller import HungController
from orchestrator.gateway.inference import Inference
from orchestrator.gateway.last_known import LastKnown
from orchestrator.gateway.logs import Logs, LogSource
from orchestrator.gateway.metrics import GatewayMetrics
from orchestrator.gateway.observation import Observation
from orchestrator.gateway.page import page_routes
from orchestrator.gateway.request_ids import RequestIds
from orchestrator.gateway.retry_after import RetryAfter
from orchestrator.gateway.route_prefix import WithoutPrefix
from orchestrator.gateway.routes import INFERENCE_ROUTES
from orchestrator.gateway.telemetry import Telemetry
from orchestrator.gateway.tracing import Tracing
from orchestrator.gateway.traffic import load_of_kind
from orchestrator.gateway.what_if import WhatIf
from orchestrator.status import ComponentKind, ComponentState, ComponentStatus
from orchestrator.telemetry.engines import EngineFigures
from orchestrator.telemetry.observer import Observer

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

    from orchestrator.telemetry.otlp import OtlpPush

logger = logging.getLogger(__name__)

GATEWAY_ID = "gateway"
STATUS_TIMEOUT_S = 5.0
LOAD_TIMEOUT_S = 30.0
"""The controller asks every shard before it answers."""
SILENT_CONTROLLER = "the controller does not answer"

Loop = Callable[[], Coroutine[Any, Any, None]]


class Gateway:
    """Handlers of the routes that tell about the mesh, around one pool of engines."""

    def __init__(
        self, config: GatewayConfig, mesh: MeshClient, pool: EnginePool, metrics: GatewayMetrics
    ) -> None:
        self._config = config
        self._mesh = mesh
        self._pool = pool
        self._metrics = metrics
        self._hung_controller = HungController(pool, mesh, config.controller_hung_s)

    async def health(self, _: Request) -> Response:
        """200 if a completion would succeed now."""
        await self._pool.refresh()
        mesh = self._pool.mesh_status
        silence_s = self._pool.controller_silence_s
        if mesh is None or silence_s > self._config.controller_grace_s:
            return _unhealthy(f"the controller has been silent for {silence_s:.0f} s")
        if not mesh.ready:
            return _unhealthy(mesh.reason)
        if not self._pool.ready:
            return _unhealthy("no engine is ready")
        return JSONResponse({"status": "ok", "reason": mesh.reason})

    def families(self) -> list[Metric]:
        """The gateway's own metrics."""
        return self._metrics.families(self._pool.in_flight, len(self._pool.ready))

    def engine_figures(self) -> dict[str, EngineFigures]:
        """What each engine said when it was last asked, by id."""
        return {e.info.id: EngineFigures.of(e.status) for e in self._pool.engines}

    async def engine_pages(self) -> dict[str, str]:
        """Metrics page of each engine that answers, by id."""
        engines = self._pool.engines
        pages = await asyncio.gather(*(self._engine_page(engine) for engine in engines))
        return {e.info.id: p for e, p in zip(engines, pages, strict=True) if p is not None}

    async def status(self, _: Request) -> Response:
        """`MeshStatus` of the controller, and with it the gateway that answers; with a silent
        controller what it said last."""
        stale_s = 0.0
        try:
            async with asyncio.timeout(STATUS_TIMEOUT_S):
                mesh = await self._mesh.status()
        except (MeshLostError, TimeoutError) as error:
            if self._pool.mesh_status is None:
                return unavailable(str(error) or SILENT_CONTROLLER)
            mesh, stale_s = self._pool.mesh_status, self._pool.controller_silence_s
        components = [*mesh.components, self._own_status()]
        mesh = mesh.model_copy(update={"components": components, "stale_s": round(stale_s, 3)})
        return Response(mesh.model_dump_json(), media_type="application/json")

    async def expert_load(self, request: Request) -> Response:
        """`ExpertLoad`: assignments per layer and expert since the shards started; with `kind`
        `KindLoad` of that kind of traffic."""
        if "kind" in request.query_params:
            return await load_of_kind(self._mesh, request)
        try:
            async with asyncio.timeout(LOAD_TIMEOUT_S):
                load = await self._mesh.expert_load()
        except (MeshLostError, TimeoutError) as error:
            return unavailable(str(error) or SILENT_CONTROLLER)
        return JSONResponse(load.to_json())

    async def poll(self) -> None:
        """Keep the pool up to date for as long as the gateway runs."""
        while True:
            try:
                await self._pool.refresh()
                await self._hung_controller.look()
            except Exception:
                logger.exception("the engines could not be looked up; trying again")
            await asyncio.sleep(self._config.poll_interval_s)

    def _own_status(self) -> ComponentStatus:
        ready, in_flight = len(self._pool.ready), self._pool.in_flight
        return ComponentStatus(
            id=GATEWAY_ID,
            kind=ComponentKind.GATEWAY,
            node=platform.node(),
            pid=os.getpid(),
            state=ComponentState.READY,
            detail=f"requests in flight: {in_flight}, engines ready: {ready}",
        )

    async def _engine_page(self, engine: PooledEngine) -> str | None:
        try:
            async with asyncio.timeout(self._config.metrics_timeout_s):
                replies = engine.client.handle(HttpRequest("GET", "/metrics"))
                first, *rest = [reply async for reply in replies]
        except (EngineError, TimeoutError, ValueError) as error:
            logger.warning("no metrics from engine %s: %r", engine.info.id, error)
            return None
        if not isinstance(first, ResponseStart) or first.status != HTTPStatus.OK:
            return None
        return (first.body + b"".join(r for r in rest if isinstance(r, bytes))).decode()


def build_app(
    config: GatewayConfig,
    mesh: MeshClient,
    key_digests: frozenset[bytes],
    admin_digests: frozenset[bytes] = frozenset(),
    logs: LogSource | None = None,
) -> Starlette:
    """The ASGI application; without digests of API keys (`auth.digest`) everybody may use it, and
    change the mesh as `admin.AdminCheck` says. An admin key is good for all that a client's is.

    logs: of the mesh's components; without, there is no route for them."""
    metrics = GatewayMetrics(config.model_name)
    pool = EnginePool(mesh)
    last = LastKnown(mesh)
    gateway = Gateway(config, mesh, pool, metrics)
    inference = Inference(config, pool, metrics)
    batch = BatchRoutes(config.batch, mesh.wake_batch_runner) if config.batch is not None else None
    observer = Observer(
        config.telemetry,
        mesh,
        gateway.engine_figures,
        lambda: pool.in_flight,
        batch=lambda: batch.figures if batch is not None else None,
    )
    telemetry = Telemetry(
        config.telemetry,
        observer,
        gateway.engine_pages,
        gateway.families,
        lambda: pool.controller_silence_s,
    )
    loops: list[Loop] = [gateway.poll, observer.run, last.poll]
    if batch is not None:
        loops.append(batch.watch)
    if config.telemetry.otlp_endpoint is not None:
        loops.append(lambda: telemetry.export(_otlp(config)))
    traces = _traces(config)

    routes = [
        Route(path, inference, methods=list(methods)) for path, methods in INFERENCE_ROUTES.items()
    ]
    routes += [
        Route("/health", gateway.health),
        Route("/api/v1/status", gateway.status),
        Route("/api/v1/expert-load", gateway.expert_load),
        *telemetry.routes(),
        *page_routes(config.route_prefix.rstrip("/")),
        Route("/api/v1/load", gateway.expert_load),
    ]
    admin = AdminCheck(admin_digests, config.host)
    routes += Api(config, mesh, last, admin).routes()
    routes += WhatIf(observer, last).routes()
    if logs is not None:
        routes += Logs(logs, admin).routes()
    if batch is not None:
        routes += batch.routes()
    app = Starlette(
        routes=routes,
        lifespan=_lifespan(loops, traces),
        middleware=[
            Middleware(Consumption),
            Middleware(WithoutPrefix),
            Middleware(RetryAfter, seconds=config.retry_after_s),
            *(Middleware(Tracing, provider=provider) for provider in traces),
            Middleware(RequestIds),
            Middleware(Observation, metrics=metrics),
            Middleware(
                KeyCheck,
                digests=key_digests | admin_digests if key_digests else key_digests,
                names=config.key_names,
            ),
        ],
        exception_handlers={HTTPException: _http_error, Exception: _internal_error},
    )
    app.router.redirect_slashes = False
    return app


def _lifespan(loops: Sequence[Loop], traces: "Sequence[TracerProvider]") -> Lifespan[Starlette]:
    """Runs `loops` beside the application; when it ends, by whatever, none of them is left and the
    last traces are sent."""

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(loop()) for loop in loops]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for provider in traces:
                await asyncio.to_thread(provider.shutdown)

    return lifespan


def _otlp(config: GatewayConfig) -> "OtlpPush":
    from orchestrator.telemetry.otlp import OtlpPush, exporter_to

    endpoint = config.telemetry.otlp_endpoint
    assert endpoint is not None
    return OtlpPush(exporter_to(endpoint, config.telemetry.otlp_protocol), config.mesh)


def _traces(config: GatewayConfig) -> "list[TracerProvider]":
    """One, or none where nothing is exported."""
    settings = config.telemetry
    if settings.otlp_endpoint is None:
        return []
    from actors.tracing.exporter import span_exporter
    from orchestrator.gateway.tracing import tracer_provider
    from orchestrator.telemetry.otlp import signal_endpoint

    where = signal_endpoint(settings.otlp_endpoint, settings.otlp_protocol, "traces")
    exporter = span_exporter(where, settings.otlp_protocol.value)
    return [tracer_provider(exporter, config.mesh, settings.trace_ratio)]


def _unhealthy(reason: str) -> Response:
    status = HTTPStatus.SERVICE_UNAVAILABLE
    return JSONResponse({"status": "unavailable", "reason": reason}, status_code=status)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    status = HTTPStatus(error.status_code)
    message = error.detail
    if status is HTTPStatus.NOT_FOUND:
        message = f"there is no {request.url.path} here"
    if status is HTTPStatus.METHOD_NOT_ALLOWED:
        message = f"{request.url.path} does not take {request.method}"
    return error_response(status, message)


async def _internal_error(_: Request, error: Exception) -> Response:
    message = f"the gateway failed: {type(error).__name__}"
    return error_response(HTTPStatus.INTERNAL_SERVER_ERROR, message)
