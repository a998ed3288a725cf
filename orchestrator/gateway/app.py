"""The gateway's HTTP application: OpenAI's routes, health, metrics and the state of the mesh."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from http import HTTPStatus

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from actors.engine.messages import HttpRequest, ResponseStart
from orchestrator.gateway.auth import KeyCheck
from orchestrator.gateway.config import GatewayConfig
from orchestrator.gateway.engine_pool import EnginePool, PooledEngine
from orchestrator.gateway.errors import error_response
from orchestrator.gateway.forward import ForwardedResponse
from orchestrator.gateway.mesh import EngineLostError, Mesh, MeshLostError
from orchestrator.gateway.metrics import GatewayMetrics
from orchestrator.gateway.routes import FORWARDED_HEADERS, INFERENCE_ROUTES

logger = logging.getLogger(__name__)


class Gateway:
    """Handlers of the routes, around one pool of engines."""

    def __init__(self, config: GatewayConfig, mesh: Mesh) -> None:
        self._config = config
        self._mesh = mesh
        self._pool = EnginePool(mesh)
        self._metrics = GatewayMetrics(config.model_name)

    async def infer(self, request: Request) -> Response:
        """Hand the request to an engine."""
        body = await self._read_body(request)
        if not self._pool.ready:
            await self._pool.refresh()
        if not self._pool.ready:
            return self._unavailable("no engine is ready")
        limit = self._pool.max_running + self._config.max_queued_requests
        if request.method == "POST" and self._pool.in_flight >= limit:
            message = f"{self._pool.in_flight} requests are running or waiting; try again later"
            return error_response(
                HTTPStatus.TOO_MANY_REQUESTS, message, "queue_full", self._config.retry_after_s
            )
        headers = tuple((k, v) for k, v in request.headers.raw if k in FORWARDED_HEADERS)
        query = request.scope["query_string"]
        forwarded = HttpRequest(request.method, request.url.path, query, headers, body)
        return ForwardedResponse(forwarded, self._pool, self._metrics, self._config.retry_after_s)

    async def health(self, _: Request) -> Response:
        """200 if a completion would succeed now."""
        await self._pool.refresh()
        mesh = self._pool.mesh_status
        if mesh is None:
            return self._unhealthy("the controller does not answer")
        if not mesh.ready:
            return self._unhealthy(mesh.reason)
        if not self._pool.ready:
            return self._unhealthy("no engine is ready")
        return JSONResponse({"status": "ok", "reason": mesh.reason})

    async def metrics(self, _: Request) -> Response:
        """Metrics of the gateway and of all engines."""
        engines = self._pool.engines
        pages = await asyncio.gather(*(self._engine_page(engine) for engine in engines))
        texts = {e.info.id: p for e, p in zip(engines, pages, strict=True) if p is not None}
        page = self._metrics.page(self._pool.in_flight, len(self._pool.ready), texts)
        return Response(page, media_type="text/plain; version=0.0.4")

    async def status(self, _: Request) -> Response:
        """`MeshStatus` of the controller."""
        try:
            mesh = await self._mesh.status()
        except MeshLostError as error:
            return self._unavailable(str(error))
        return Response(mesh.model_dump_json(), media_type="application/json")

    async def poll(self) -> None:
        """Keep the pool up to date for as long as the gateway runs."""
        while True:
            try:
                await self._pool.refresh()
            except Exception:
                logger.exception("the engines could not be looked up; trying again")
            await asyncio.sleep(self._config.poll_interval_s)

    async def _read_body(self, request: Request) -> bytes:
        limit = self._config.max_body_bytes
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > limit:
                message = f"the request body is larger than {limit} bytes"
                raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, message)
        return bytes(body)

    async def _engine_page(self, engine: PooledEngine) -> str | None:
        try:
            async with asyncio.timeout(self._config.metrics_timeout_s):
                replies = engine.client.handle(HttpRequest("GET", "/metrics"))
                parts = [reply async for reply in replies]
        except (EngineLostError, TimeoutError) as error:
            logger.warning("no metrics from engine %s: %r", engine.info.id, error)
            return None
        if not parts or not isinstance(parts[0], ResponseStart):
            return None
        return (parts[0].body + b"".join(p for p in parts[1:] if isinstance(p, bytes))).decode()

    def _unavailable(self, reason: str) -> Response:
        message = f"nothing can serve this now: {reason}"
        return error_response(
            HTTPStatus.SERVICE_UNAVAILABLE, message, "unavailable", self._config.retry_after_s
        )

    def _unhealthy(self, reason: str) -> Response:
        return JSONResponse({"status": "unavailable", "reason": reason}, status_code=503)


def build_app(config: GatewayConfig, mesh: Mesh, key_digests: frozenset[bytes]) -> Starlette:
    """The ASGI application. `key_digests`: see `ApiKeySettings`; empty lets everybody in."""
    gateway = Gateway(config, mesh)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        polling = asyncio.create_task(gateway.poll())
        yield
        polling.cancel()
        with suppress(asyncio.CancelledError):
            await polling

    routes = [
        Route(path, gateway.infer, methods=list(methods))
        for path, methods in INFERENCE_ROUTES.items()
    ]
    routes += [
        Route("/health", gateway.health),
        Route("/metrics", gateway.metrics),
        Route("/api/v1/status", gateway.status),
    ]
    return Starlette(
        routes=routes,
        lifespan=lifespan,
        middleware=[Middleware(KeyCheck, digests=key_digests)],
        exception_handlers={HTTPException: _http_error},
    )


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    status = HTTPStatus(error.status_code)
    message = error.detail
    if status is HTTPStatus.NOT_FOUND:
        message = f"there is no {request.url.path} here"
    if status is HTTPStatus.METHOD_NOT_ALLOWED:
        message = f"{request.url.path} does not take {request.method}"
    return error_response(status, message)
