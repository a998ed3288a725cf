"""ASGI middleware: one span for each request of the inference routes, in W3C's trace context.

A caller's `traceparent` makes the span part of the caller's trace and decides whether it is kept;
else a part of the requests is kept, as the config says. The engine gets the span's own context in
the same header. Spans wait in a bounded queue; where the collector is away they are dropped, and no
request waits for it.
"""

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Span, SpanKind, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from orchestrator.gateway.routes import INFERENCE_ROUTES

_CONTEXT = TraceContextTextMapPropagator()
_FIELDS = frozenset(field.encode() for field in _CONTEXT.fields)


def tracer_provider(exporter: SpanExporter, mesh: str, ratio: float) -> TracerProvider:
    """ratio: part of the requests without a caller's trace that is kept."""
    provider = TracerProvider(
        resource=Resource({"service.name": "expertmesh-gateway", "expertmesh.mesh": mesh}),
        sampler=ParentBased(TraceIdRatioBased(ratio)),
        shutdown_on_exit=False,
    )
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return provider


class Tracing:
    """Spans of the requests, from arrival to the last byte."""

    def __init__(self, app: ASGIApp, provider: TracerProvider) -> None:
        self._app = app
        self._tracer = provider.get_tracer("expertmesh.gateway")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] not in INFERENCE_ROUTES:
            await self._app(scope, receive, send)
            return
        carrier = {k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"]}
        span = self._tracer.start_span(
            f"{scope['method']} {scope['path']}",
            _CONTEXT.extract(carrier),
            SpanKind.SERVER,
            {"http.request.method": scope["method"], "url.path": scope["path"]},
        )
        try:
            await self._app(_with_context(scope, span), receive, _observed(send, span))
        finally:
            span.end()


def _with_context(scope: Scope, span: Span) -> Scope:
    """The same request with the span's context in place of the caller's."""
    carrier: dict[str, str] = {}
    _CONTEXT.inject(carrier, set_span_in_context(span))
    headers = [(k, v) for k, v in scope["headers"] if k.lower() not in _FIELDS]
    headers += [(k.encode(), v.encode()) for k, v in carrier.items()]
    return {**scope, "headers": headers}


def _observed(send: Send, span: Span) -> Send:
    """Notes the answer's status, its first byte, and whether it was whole."""
    began = False

    async def observe(message: Message) -> None:
        nonlocal began
        if message["type"] == "http.response.start":
            span.set_attribute("http.response.status_code", message["status"])
            if message["status"] >= 500:
                span.set_status(StatusCode.ERROR)
        elif not began and message.get("body"):
            began = True
            span.add_event("first byte")
        await send(message)

    return observe
