"""Metrics arrive at a collector made of opentelemetry-proto's own service, over gRPC and HTTP."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import grpc
import pytest
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2_grpc as service
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as traces
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from prometheus_client import CollectorRegistry, Histogram

from orchestrator.config.telemetry import OtlpProtocol, TelemetryConfig
from orchestrator.gateway.app import build_app
from orchestrator.gateway.config import GatewayConfig
from orchestrator.telemetry.otlp import OtlpPush, exporter_to
from tests.orchestrator.gateway.fakes import FakeEngine, FakeMesh, call, json_answer
from tests.telemetry.test_observer import looked, moving_mesh


@contextmanager
def grpc_collector(received):
    class Collector(service.MetricsServiceServicer):
        def Export(self, request, context):  # noqa: N802
            received.append(request)
            return ExportMetricsServiceResponse()

    class TraceCollector(traces.TraceServiceServicer):
        def Export(self, request, context):  # noqa: N802
            received.append(request)
            return ExportTraceServiceResponse()

    with ThreadPoolExecutor(2) as pool:
        server = grpc.server(pool)
        service.add_MetricsServiceServicer_to_server(Collector(), server)
        traces.add_TraceServiceServicer_to_server(TraceCollector(), server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        yield f"http://127.0.0.1:{port}"
        server.stop(None).wait()


@contextmanager
def http_collector(received):
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            request = {
                "/v1/metrics": ExportMetricsServiceRequest,
                "/v1/traces": ExportTraceServiceRequest,
            }[self.path]
            received.append(request.FromString(body))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("protocol", "collector"),
    [(OtlpProtocol.GRPC, grpc_collector), (OtlpProtocol.HTTP, http_collector)],
)
def test_a_collector_gets_what_metrics_shows(protocol, collector):
    registry = CollectorRegistry()
    waits = Histogram("expertmesh_test_seconds", "A test.", buckets=(1, 2), registry=registry)
    for value in (0.5, 1.5, 1.7, 9):
        waits.observe(value)
    observer = looked(moving_mesh())
    received = []
    with collector(received) as endpoint:
        push = OtlpPush(exporter_to(endpoint, protocol), "test")
        assert push.push([*observer.families(0.0), *registry.collect()])
        push.close()
    (resource,) = received[0].resource_metrics
    attributes = {a.key: a.value.string_value for a in resource.resource.attributes}
    assert attributes == {"service.name": "expertmesh", "expertmesh.mesh": "test"}
    metrics = {m.name: m for m in resource.scope_metrics[0].metrics}
    shards = metrics["expertmesh_shard_assignments_total"]
    assert shards.sum.is_monotonic
    found = {p.attributes[0].value.string_value: p.as_double for p in shards.sum.data_points}
    assert found == {id: c.sum() for id, c in observer.snapshot.totals.by_shard.items()}
    assert metrics["expertmesh_shard_memory_bytes"].unit == "By"
    (point,) = metrics["expertmesh_test_seconds"].histogram.data_points
    assert (list(point.bucket_counts), list(point.explicit_bounds)) == ([1, 2, 1], [1.0, 2.0])
    assert (point.count, point.sum) == (4, pytest.approx(12.7))


TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize(
    ("protocol", "collector"),
    [(OtlpProtocol.GRPC, grpc_collector), (OtlpProtocol.HTTP, http_collector)],
)
def test_a_request_is_part_of_its_callers_trace(protocol, collector, kept):
    received = []
    engine = FakeEngine(json_answer(b'{"answer": 42}'))

    async def main(endpoint):
        settings = TelemetryConfig(otlp_endpoint=endpoint, otlp_protocol=protocol)
        config = GatewayConfig(mesh="test", model_name="tiny", telemetry=settings)
        app = build_app(config, FakeMesh({"a": engine}), frozenset())
        async with app.router.lifespan_context(app):
            headers = {"traceparent": f"00-{TRACE}-{CALLER}-0{int(kept)}"}
            answer = await call(app, "POST", "/v1/completions", b"{}", headers)
            assert answer.status == 200
            accept = {"accept": "application/openmetrics-text"}
            page = (await call(app, "GET", "/metrics", headers=accept)).body.decode()
            # The range that the request is counted in names its trace.
            assert (f'# {{trace_id="{TRACE}"}}' in page) is kept

    with collector(received) as endpoint:
        asyncio.run(main(endpoint))
    seen = dict(engine.requests[0].headers)[b"traceparent"].decode().split("-")
    assert seen[1] == TRACE
    assert seen[3] == f"0{int(kept)}"
    spans = [
        span
        for export in received
        if isinstance(export, ExportTraceServiceRequest)
        for resource in export.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]
    if not kept:
        assert spans == []
        return
    (span,) = spans
    assert span.name == "POST /v1/completions"
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, CALLER)
    assert seen[2] == span.span_id.hex()  # the engine's spans are children of the gateway's
    assert [event.name for event in span.events] == ["first byte"]


def test_a_collector_that_is_away_is_counted_and_nothing_else():
    push = OtlpPush(exporter_to("http://127.0.0.1:9", OtlpProtocol.HTTP), "test")
    assert push.push(looked(moving_mesh()).families(0.0)) is False
    assert push.failures == 1
    push.close()
