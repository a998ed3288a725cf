"""Routes of what is observed: metrics, the look as JSON and as a stream, the expert matrix."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from http import HTTPStatus
from typing import TYPE_CHECKING

from prometheus_client.core import Metric
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from orchestrator.api.errors import error_response
from orchestrator.config.telemetry import TelemetryConfig
from orchestrator.gateway.metrics import engine_families, page_of
from orchestrator.telemetry.matrix import MEDIA_TYPE
from orchestrator.telemetry.observer import NoSuchShard, Observer
from orchestrator.telemetry.report import Point, report

if TYPE_CHECKING:
    from orchestrator.telemetry.otlp import OtlpPush

EVENTS_PER_S = 50
"""Events of all streams together. However many follow, requests are served: the more there are, the
more looks each of them is not told of."""

Pages = Callable[[], Awaitable[Mapping[str, str]]]


class Telemetry:
    """Handlers around one observer.

    own: the gateway's own families. silence_s: how long the controller has said nothing.
    """

    def __init__(
        self,
        config: TelemetryConfig,
        observer: Observer,
        pages: Pages,
        own: Callable[[], list[Metric]],
        silence_s: Callable[[], float],
    ) -> None:
        self._config = config
        self._observer = observer
        self._pages = pages
        self._own = own
        self._silence_s = silence_s
        self._followers = 0
        self._events_of = -1
        """Tick that `_encoded` is of."""
        self._encoded: dict[bool, bytes] = {}
        """The event with all of the curves (True), and that with their last points."""

    def routes(self) -> list[Route]:
        return [
            Route("/metrics", self.metrics),
            Route("/api/v1/telemetry", self.telemetry),
            Route("/api/v1/telemetry/stream", self.stream),
            Route("/api/v1/telemetry/matrix", self.matrix),
        ]

    async def metrics(self, request: Request) -> Response:
        """Metrics of the gateway, of the mesh as last seen, and of all engines."""
        pages, accept = await self._pages(), request.headers.get("accept", "")
        # In a thread: a large mesh takes tens of milliseconds.
        page, media_type = await asyncio.to_thread(lambda: page_of(self._families(pages), accept))
        return Response(page, media_type=media_type)

    async def telemetry(self, _: Request) -> Response:
        """The last look, and the curves that led to it."""
        return Response(self._report(self._observer.points), media_type="application/json")

    async def stream(self, _: Request) -> Response:
        """Server-sent events: the look with all of the curves, then looks with one point each."""
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        return StreamingResponse(self._events(), media_type="text/event-stream", headers=headers)

    async def matrix(self, request: Request) -> Response:
        """`?since=NUMBER`: what came after that look; `?shard=ID`: totals of one shard."""
        since = request.query_params.get("since", "0")
        if not since.isdecimal():
            message = f"since must be the sequence number of a matrix, not {since!r}"
            return error_response(HTTPStatus.BAD_REQUEST, message)
        shard = request.query_params.get("shard")
        try:
            body = await asyncio.to_thread(self._observer.matrix, int(since), shard)
        except NoSuchShard:
            message = f"there is no shard {shard!r}: see the components of /api/v1/status"
            return error_response(HTTPStatus.NOT_FOUND, message)
        return Response(body, media_type=MEDIA_TYPE, headers={"cache-control": "no-store"})

    async def export(self, push: "OtlpPush") -> None:
        """Push everything to a collector now and then, until cancelled."""
        while True:
            await asyncio.sleep(self._config.otlp_interval_s)
            pages = await self._pages()
            families = await asyncio.to_thread(self._families, pages)
            await asyncio.to_thread(push.push, families)

    def _families(self, pages: Mapping[str, str]) -> list[Metric]:
        """Everything; pages: of the engines."""
        mesh = self._observer.families(self._silence_s())
        return [*self._own(), *mesh, *engine_families(pages)]

    async def _events(self) -> AsyncIterator[bytes]:
        self._followers += 1
        try:
            first = True
            async for _ in self._observer.followed():
                yield self._event(curves=first)
                first = False
                await asyncio.sleep(self._followers / EVENTS_PER_S)
        finally:
            self._followers -= 1

    def _event(self, curves: bool) -> bytes:
        """Made once for each look, whoever follows."""
        if self._events_of != self._observer.ticks:
            self._events_of, self._encoded = self._observer.ticks, {}
        if curves not in self._encoded:
            points = list(self._observer.points)
            said = self._report(points if curves else points[-1:])
            self._encoded[curves] = b"data: " + said + b"\n\n"
        return self._encoded[curves]

    def _report(self, points: Iterable[Point]) -> bytes:
        observer = self._observer
        said = report(
            observer.snapshot,
            observer.age_s,
            self._silence_s(),
            self._config.interval_s,
            points,
            observer.engines,
            observer.happenings,
            self._config.hot_experts,
            observer.batch,
        )
        return json.dumps(said, separators=(",", ":")).encode()
