"""One inference request from its first byte to its last.

Whether there is room is asked before the body is read: a full gateway reads nothing. A request that
is still being sent holds no place among those that run or wait, so however many slow clients there
are, they keep nobody out; each of them is given up after a while (`request_body`). When its body is
there a request needs a place, and keeps it until it is answered, also while it waits for an engine.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from actors.messages import HttpRequest
from orchestrator.api.errors import error_response, unavailable
from orchestrator.api.request_body import read_body
from orchestrator.clients.engine_pool import EnginePool
from orchestrator.gateway.config import GatewayConfig
from orchestrator.gateway.forward import ForwardedResponse
from orchestrator.gateway.metrics import GatewayMetrics
from orchestrator.gateway.priority import without_priority
from orchestrator.gateway.routes import CONTINUED_ROUTES, FORWARDED_HEADERS
from orchestrator.gateway.traffic import TrafficKinds, told_kind


class Inference:
    """ASGI application of the inference routes."""

    def __init__(self, config: GatewayConfig, pool: EnginePool, metrics: GatewayMetrics) -> None:
        self._config = config
        self._pool = pool
        self._metrics = metrics
        self._kinds = TrafficKinds(config.traffic_kinds)
        self._taken = 0
        """Places taken: requests with a whole body that are not answered yet."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises `HTTPException` for a body that is too large or too slow."""
        if not self._pool.ready:
            await self._pool.refresh()
        request = Request(scope, receive)
        answer = self._refusal(request)
        if answer is None:
            try:
                body = await read_body(
                    request, self._config.max_body_bytes, self._config.body_timeout_s
                )
            except ClientDisconnect:
                return
            answer = self._refusal(request) or self._forwarded(request, body)
        with self._place(answer):
            await answer(scope, receive, send)

    def _refusal(self, request: Request) -> Response | None:
        """503 or 429 where there is no engine or no room for this request now."""
        ready = bool(self._pool.ready)
        if not ready and self._config.engine_wait_s == 0:
            return unavailable("no engine is ready")
        limit = self._pool.max_running + self._config.max_queued_requests
        if self._taken < limit or (ready and request.method != "POST"):
            return None
        message = f"{self._taken} requests are running or waiting; try again later"
        return error_response(HTTPStatus.TOO_MANY_REQUESTS, message, "queue_full")

    def _forwarded(self, request: Request, body: bytes) -> ForwardedResponse:
        kind = self._kinds.kind_of(request.scope)
        self._metrics.count_kind(kind)
        headers = tuple((k, v) for k, v in request.headers.raw if k in FORWARDED_HEADERS)
        headers += told_kind(kind)
        query, path = request.scope["query_string"], request.url.path
        record = path in CONTINUED_ROUTES and self._config.migration_limit > 0
        body = without_priority(body)
        forwarded = HttpRequest(request.method, path, query, headers, body, record)
        return ForwardedResponse(forwarded, self._pool, self._metrics, self._config)

    @contextmanager
    def _place(self, answer: Response) -> Iterator[None]:
        """Hold a place while an engine works; an answer of the gateway itself needs none."""
        held = int(isinstance(answer, ForwardedResponse))
        self._taken += held
        try:
            yield
        finally:
            self._taken -= held
