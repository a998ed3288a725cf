"""Calls of experts in sampled steps become spans that join across processes; others do not, and
neither changes a bit of the result."""

import random
import time
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace

import pytest
import torch
from opentelemetry.proto.trace.v1.trace_pb2 import Status

from actors.dispatch.backend import ExpertUnavailable
from actors.dispatch.dispatcher import Dispatcher
from actors.dispatch.router_client import RouterClient
from actors.dispatch.traced import TracedDispatcher
from actors.router.server import RouterServer
from actors.shard.server import ShardServer
from actors.tracing.ids import DRAWN_BITS, MOST_RANKS, of_rank, sample_id
from actors.tracing.settings import SPANS_VARIABLE, SpanSettings, settings_of_process
from actors.tracing.step_spans import StepSpans
from actors.vllm_plugin import traced_step
from actors.vllm_plugin.traced_step import StepSampler, trace_steps
from actors.wire.address import parse_address
from orchestrator.config.telemetry import OtlpProtocol, TelemetryConfig
from orchestrator.telemetry.engine_tracing import engine_tracing
from orchestrator.telemetry.step_tracing import span_settings
from tests.actors.fakes import HIDDEN, AffineKernel, StaticViews, epoch, running, spec, view
from tests.telemetry.spans import attributes_of, spans_of
from tests.telemetry.test_otlp import grpc_collector, http_collector

SECRET = b"a test's secret"
HALVES = [{0: [0, 1, 2, 3], 1: [0, 1, 2, 3]}, {0: [4, 5, 6, 7], 1: [4, 5, 6, 7]}]
SAMPLE = sample_id(12345)
ROWS, TOP_K = 16, 3


def batch():
    ids = torch.stack([torch.randperm(8)[:TOP_K] for _ in range(ROWS)]).to(torch.int32)
    return torch.randn(ROWS, HIDDEN).bfloat16(), torch.rand(ROWS, TOP_K), ids


def step_spans(endpoint, kind, component, protocol=OtlpProtocol.HTTP):
    config = TelemetryConfig(otlp_endpoint=endpoint, otlp_protocol=protocol, step_trace_ratio=1.0)
    return StepSpans.to_collector(span_settings(config, "test", kind, component))


@contextmanager
def traced_shards(endpoint, folder, transport, protocol=OtlpProtocol.HTTP):
    """Addresses of two; their spans arrive when they stop."""
    with ExitStack() as stack:
        addresses = []
        for number, held in enumerate(HALVES):
            where = f"unix:{folder}/s{number}" if transport == "unix" else "tcp:127.0.0.1:0"
            spans = step_spans(endpoint, "shard", f"shard-{number}", protocol)
            stack.callback(spans.close)
            server = ShardServer(
                spec(), AffineKernel(held), [parse_address(where)], SECRET, spans=spans
            )
            stack.enter_context(running(server))
            addresses += server.addresses
        yield addresses


@pytest.mark.parametrize("transport", ["unix", "tcp"])
@pytest.mark.parametrize(
    ("protocol", "collector"),
    [(OtlpProtocol.GRPC, grpc_collector), (OtlpProtocol.HTTP, http_collector)],
)
def test_shards_spans_are_below_the_dispatchers(tmp_path, transport, protocol, collector):
    received, began_ns = [], time.time_ns()
    with (
        collector(received) as endpoint,
        traced_shards(endpoint, tmp_path, transport, protocol) as addresses,
    ):
        views = StaticViews(view(epoch(HALVES), addresses))
        spans = step_spans(endpoint, "engine", "engine/0", protocol)
        dispatcher = TracedDispatcher(views, SECRET, spans)
        plain = Dispatcher(views, SECRET)
        for layer in (0, 1):
            call = (layer, *batch())
            wanted = plain.wait(plain.send(*call))
            assert torch.equal(dispatcher.wait(dispatcher.send(*call)), wanted)
            assert torch.equal(dispatcher.wait(dispatcher.send(*call, SAMPLE)), wanted)
        plain.close()
        dispatcher.close()
    found = spans_of(received)
    assert {span.trace_id for *_, span in found} == {found[0][2].trace_id}, "one trace"
    dispatches = {
        attributes_of(span)["layer"]: span for *_, span in found if "dispatch" in span.name
    }
    assert sorted(dispatches) == [0, 1]
    computed = [(who, span) for _, who, span in found if "compute" in span.name]
    assert len(found) == 2 + len(computed)
    for layer, dispatch in dispatches.items():
        below = {who: span for who, span in computed if span.parent_span_id == dispatch.span_id}
        assert sorted(below) == ["shard-0", "shard-1"]
        said = attributes_of(dispatch)
        assert (said["shards"], said["rows"], said["resent"]) == (2, ROWS, 0)
        assert said["assignments"] == ROWS * TOP_K
        assert sum(attributes_of(span)["assignments"] for span in below.values()) == ROWS * TOP_K
        assert all(attributes_of(span)["layer"] == layer for span in below.values())
        assert [event.name for event in dispatch.events] == ["sent", "waited for"]
        times = [event.time_unix_nano for event in dispatch.events]
        inside = [dispatch.start_time_unix_nano, *times, dispatch.end_time_unix_nano]
        assert began_ns < inside[0] <= inside[1] <= inside[2] <= inside[3] < time.time_ns()


def test_a_router_hands_the_sample_on(tmp_path):
    received = []
    with (
        http_collector(received) as endpoint,
        traced_shards(endpoint, tmp_path, "unix") as addresses,
    ):
        given = view(epoch(HALVES), addresses)
        router = TracedDispatcher(
            StaticViews(given), SECRET, step_spans(endpoint, "router", "router/0")
        )
        server = RouterServer(router, [parse_address(f"unix:{tmp_path}/r")], SECRET)
        with running(server):
            routed = view(epoch(HALVES), addresses, routers=server.addresses, mode="actor")
            client = RouterClient(StaticViews(routed), SECRET)
            call = (1, *batch())
            plain = client.wait(client.send(*call))
            assert torch.equal(client.wait(client.send(*call, SAMPLE)), plain)
            client.close()
        router.close()
    found = spans_of(received)
    (dispatch,) = [span for service, _, span in found if service == "expertmesh-router"]
    computed = [span for service, _, span in found if service == "expertmesh-shard"]
    assert [span.parent_span_id for span in computed] == [dispatch.span_id] * 2


def test_a_failed_call_is_a_failed_span(tmp_path):
    received = []
    with http_collector(received) as endpoint:
        spans = step_spans(endpoint, "engine", "engine/0")
        with traced_shards(endpoint, tmp_path, "unix") as addresses:
            given = view(epoch(HALVES), addresses, deadline_s=0.2, wait_s=0.2)
            dispatcher = TracedDispatcher(StaticViews(given), SECRET, spans)
            dispatcher.wait(dispatcher.send(0, *batch()))
        for _ in range(2):  # lost while it is waited for, and known to be lost
            with pytest.raises(ExpertUnavailable):
                dispatcher.wait(dispatcher.send(0, *batch(), SAMPLE))
        dispatcher.close()
    found = [span for *_, span in spans_of(received)]
    assert [span.name for span in found] == ["expertmesh.dispatch"] * 2
    assert {span.status.code for span in found} == {Status.STATUS_CODE_ERROR}


def test_a_collector_that_is_away_holds_nobody_up(tmp_path):
    nowhere = "http://127.0.0.1:9"
    with traced_shards(nowhere, tmp_path, "unix") as addresses:
        views = StaticViews(view(epoch(HALVES), addresses))
        dispatcher = TracedDispatcher(views, SECRET, step_spans(nowhere, "engine", "engine/0"))
        dispatcher.wait(dispatcher.send(0, *batch()))  # connects
        began_s = time.monotonic()
        for _ in range(300):
            dispatcher.wait(dispatcher.send(0, *batch(), SAMPLE))
        assert time.monotonic() - began_s < 60
        dispatcher.close()


# -- steps


TRACED = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
UNTRACED = "00-0af7651916cd43dd8448eb211c80319d-b7ad6b7169203332-00"
HEADERS = {"a": {"traceparent": TRACED}, "b": {"traceparent": UNTRACED}, "c": None}


def a_step(tokens=7):
    return SimpleNamespace(
        num_scheduled_tokens=dict.fromkeys(HEADERS, 1), total_num_scheduled_tokens=tokens
    )


class Runner:
    """In the place of vLLM's model runner: says which sample was in force while it ran."""

    def execute_model(self, step, intermediate=None):
        if intermediate == "fails":
            raise RuntimeError("a step that fails")
        return traced_step.sample


def test_a_steps_span_links_to_its_requests(monkeypatch):
    received = []
    with http_collector(received) as endpoint:
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
        config = TelemetryConfig(
            otlp_endpoint=endpoint, otlp_protocol=OtlpProtocol.HTTP, step_trace_ratio=1.0
        )
        for name, value in engine_tracing(config, "test", "engine/0").environment.items():
            monkeypatch.setenv(name, value)
        sampler = StepSampler.of_process()
        made = []
        real = StepSpans.to_collector
        monkeypatch.setattr(
            StepSpans, "to_collector", lambda *given: made.append(real(*given)) or made[-1]
        )
        first, second = Runner(), Runner()
        trace_steps(first, 0)
        trace_steps(second, 1)
        step = a_step()
        assert first.execute_model(step) == 0, "not marked"
        sampler.mark(step, HEADERS.get)
        samples = [runner.execute_model(step) for runner in (first, second)]
        assert samples == [of_rank(samples[0], rank) for rank in (0, 1)]
        with pytest.raises(RuntimeError):
            first.execute_model(step, "fails")
        assert traced_step.sample == 0
        for spans in made:
            spans.close()
    (_, who, span), (*_, failed) = spans_of(received)
    assert (who, span.name) == ("engine/0", "expertmesh.step")
    (link,) = span.links
    assert f"00-{link.trace_id.hex()}-{link.span_id.hex()}-01" == TRACED
    assert (attributes_of(span)["requests"], attributes_of(span)["tokens"]) == (3, 7)
    assert failed.status.code == Status.STATUS_CODE_ERROR
    assert len(made) == 1, "the first worker's only"


def test_a_part_of_the_steps_is_sampled():
    sampler, chosen = StepSampler(0.25, random.Random(1)), 0
    for _ in range(4000):
        step = a_step()
        sampler.mark(step, HEADERS.get)
        chosen += hasattr(step, "expertmesh_sample")
    assert 900 < chosen < 1100
    empty = a_step(tokens=0)
    StepSampler(1.0, random.Random(1)).mark(empty, HEADERS.get)
    assert not hasattr(empty, "expertmesh_sample")


def test_without_sampling_there_is_nothing(monkeypatch):
    monkeypatch.delenv(SPANS_VARIABLE, raising=False)
    assert settings_of_process() is None
    assert StepSampler.of_process() is None
    runner = Runner()
    trace_steps(runner, 0)
    assert "execute_model" not in vars(runner)
    off = TelemetryConfig(otlp_endpoint="http://127.0.0.1:4317", step_trace_ratio=0)
    assert span_settings(off, "test", "engine", "engine/0") is None
    assert SPANS_VARIABLE not in engine_tracing(off, "test", "engine/0").environment
    assert span_settings(TelemetryConfig(), "test", "engine", "engine/0") is None


def test_settings_travel_in_the_environment(monkeypatch):
    settings = SpanSettings("http://c:4317", "grpc", 'mesh "x"', "service", "engine/0", 0.125)
    for name, value in settings.variables().items():
        monkeypatch.setenv(name, value)
    assert settings_of_process() == settings


def test_sample_ids_fit_compiled_code():
    largest = sample_id((1 << DRAWN_BITS) - 1)
    assert 0 < of_rank(largest, MOST_RANKS - 1) < 1 << 63
    assert sample_id(0) > 0
