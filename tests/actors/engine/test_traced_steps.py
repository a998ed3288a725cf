"""An engine's sampled steps as spans: linked to the requests in them, above the calls of experts
and what shards computed for these; the text is the one that an untraced engine gives."""

import json
import os
import time

import pytest

from actors.dispatch.subscription import ADDRESS_VARIABLE, SECRET_VARIABLE
from actors.engine.config import EngineConfig
from actors.messages import HttpRequest
from benchmarks.harness.local_mesh import SECRET, LocalMesh, ShardShape
from orchestrator.config.telemetry import OtlpProtocol, TelemetryConfig
from orchestrator.engine_settings import EXECUTOR_FLAG, ONE_PROCESS_EXECUTOR
from orchestrator.telemetry.engine_tracing import engine_tracing
from tests.checkpoints.make import make_checkpoint
from tests.orchestrator.gateway.ray_fakes import private_ray, start_actor
from tests.telemetry.spans import attributes_of, spans_of
from tests.telemetry.test_otlp import http_collector

pytestmark = [pytest.mark.vllm, pytest.mark.ray, pytest.mark.long]

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
NEW_TOKENS = 8


def completion(engine, traceparent=None):
    import ray

    body = {"model": "tiny", "prompt": list(range(10, 30)), "max_tokens": NEW_TOKENS}
    headers = [(b"content-type", b"application/json")]
    if traceparent:
        headers.append((b"traceparent", traceparent.encode()))
    text = json.dumps(body | {"temperature": 0}).encode()
    request = HttpRequest("POST", "/v1/completions", b"", tuple(headers), text)
    replies = engine.handle.options(num_returns="streaming").remote(request)
    start, *chunks = [ray.get(reply) for reply in replies]
    assert start.status == 200
    return json.loads(start.body + b"".join(chunks))["choices"][0]["text"]


@pytest.fixture
def collector():
    with http_collector(received := []) as endpoint:
        yield (
            TelemetryConfig(
                otlp_endpoint=endpoint, otlp_protocol=OtlpProtocol.HTTP, step_trace_ratio=1.0
            ),
            received,
        )


@pytest.fixture
def engine(collector, tmp_path, monkeypatch):
    import ray

    from actors.engine.engine import Engine

    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
    model = make_checkpoint("qwen3_moe", tmp_path / "model")
    with LocalMesh(model, tmp_path / "m", telemetry=collector[0]) as mesh:
        mesh.serve([ShardShape(), ShardShape()])
        tracing = engine_tracing(collector[0], "local", "engine/0")
        config = EngineConfig(
            engine_id="e0",
            model=str(model),
            served_model_name="tiny",
            flags={
                "max_model_len": 256,
                "max_num_seqs": 4,
                "enforce_eager": True,
                EXECUTOR_FLAG: ONE_PROCESS_EXECUTOR,
                **tracing.flags,
            },
            environment={
                **tracing.environment,
                ADDRESS_VARIABLE: mesh.address,
                SECRET_VARIABLE: SECRET.decode(),
                "OTEL_BSP_SCHEDULE_DELAY": "100",
                "VLLM_CPU_OMP_THREADS_BIND": "nobind",
                "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
            },
        )
        with private_ray():
            engine = start_actor(Engine, "engine/e0", config)
            ray.get(engine.start.remote())
            yield engine
            ray.get(engine.stop.remote())


def test_steps_link_to_their_requests(engine, collector):
    received = collector[1]
    plain = completion(engine)
    assert completion(engine, f"00-{TRACE}-{PARENT}-01") == plain

    def linked():
        steps = [s for *_, s in spans_of(received) if s.name == "expertmesh.step" and s.links]
        return steps if len(steps) == NEW_TOKENS else None

    end_s = time.monotonic() + 60
    while not (steps := linked()):
        assert time.monotonic() < end_s, [s.name for *_, s in spans_of(received)]
        time.sleep(0.1)
    time.sleep(0.5)  # what shards sent meanwhile
    for step in steps:
        (link,) = step.links
        assert (link.trace_id.hex(), link.span_id.hex()) == (TRACE, PARENT)
    found = spans_of(received)
    step = steps[-1]
    dispatches = {
        attributes_of(span)["layer"]: span
        for *_, span in found
        if span.parent_span_id == step.span_id
    }
    assert len(dispatches) >= 2
    assert {span.trace_id for span in dispatches.values()} == {step.trace_id}
    for dispatch in dispatches.values():
        shards = {who for _, who, span in found if span.parent_span_id == dispatch.span_id}
        assert len(shards) == attributes_of(dispatch)["shards"] > 0
        assert step.start_time_unix_nano <= dispatch.start_time_unix_nano
        assert dispatch.end_time_unix_nano <= step.end_time_unix_nano
    request = next(span for *_, span in found if span.name == "llm_request")
    assert (request.trace_id.hex(), request.parent_span_id.hex()) == (TRACE, PARENT)
