"""The real thing: OpenAI's own client, the gateway on Serve, and a vLLM engine actor.

One engine serves all tests of this module, in the order they stand here; the last ones drain and
kill it.
"""

import os
import signal
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import psutil
import pytest

from actors.engine.config import EngineConfig
from actors.engine_lifecycle import EngineState
from orchestrator.clients.ray_mesh import RayMeshClient
from orchestrator.config.telemetry import OtlpProtocol, TelemetryConfig
from orchestrator.engine_settings import EXECUTOR_FLAG, ONE_PROCESS_EXECUTOR
from orchestrator.gateway.config import GatewayConfig
from orchestrator.gateway.deploy import deploy_gateway, remove_gateway
from orchestrator.telemetry.engine_tracing import engine_tracing
from tests.checkpoints.make import make_checkpoint
from tests.orchestrator.gateway.ray_fakes import (
    CONTROLLER,
    NAMESPACE,
    FakeController,
    free_port,
    private_ray,
    start_actor,
)
from tests.processes import living, wait_until
from tests.telemetry.test_otlp import http_collector

pytestmark = [pytest.mark.vllm, pytest.mark.ray, pytest.mark.long]

MODEL = "tiny"
ENGINE = "engine-0"
PROMPT = "The quick brown fox"
MAX_MODEL_LEN = 1024


@pytest.fixture(scope="module")
def spans():
    """Where spans go, and what came there so far. Over HTTP: a gRPC server in this process would
    get in the way of Ray, which forks."""
    with http_collector(received := []) as endpoint:
        yield TelemetryConfig(otlp_endpoint=endpoint, otlp_protocol=OtlpProtocol.HTTP), received


@pytest.fixture(scope="module")
def engine(tmp_path_factory, spans):
    import ray

    from actors.engine.engine import Engine

    tracing = engine_tracing(spans[0], "test", ENGINE)
    config = EngineConfig(
        engine_id=ENGINE,
        model=str(make_checkpoint("qwen3_moe", tmp_path_factory.mktemp("model"))),
        served_model_name=MODEL,
        flags={
            "max_model_len": MAX_MODEL_LEN,
            "max_num_seqs": 8,
            EXECUTOR_FLAG: ONE_PROCESS_EXECUTOR,
            **tracing.flags,
        },
        environment={**tracing.environment, "OTEL_BSP_SCHEDULE_DELAY": "100"},
    )
    with private_ray():
        controller = start_actor(FakeController, CONTROLLER, [ENGINE])
        engine = start_actor(Engine, ENGINE, config)
        ray.get(engine.start.remote())
        yield engine
        del controller


@pytest.fixture(scope="module")
def url(engine, spans):
    assert engine is not None
    yield deploy_gateway(
        GatewayConfig(mesh="test", model_name=MODEL, port=free_port(), telemetry=spans[0]),
        RayMeshClient(CONTROLLER, NAMESPACE),
    )
    remove_gateway("test")


@pytest.fixture(scope="module")
def client(url):
    with openai.OpenAI(base_url=url + "/v1", api_key="none", max_retries=0) as client:
        yield client


def complete(client, **arguments):
    return client.completions.create(
        model=MODEL, **({"prompt": PROMPT, "max_tokens": 16, "temperature": 0} | arguments)
    )


def chat(client, **arguments):
    messages = [{"role": "user", "content": PROMPT}]
    return client.chat.completions.create(
        model=MODEL, messages=messages, max_tokens=16, temperature=0, **arguments
    )


def metric(url, name):
    """Value of one series of the engine."""
    lines = httpx.get(url + "/metrics").text.splitlines()
    (line,) = [line for line in lines if line.startswith(name + "{")]
    assert f'engine_id="{ENGINE}"' in line
    return float(line.split()[-1])


def test_models_and_health(client, url):
    assert [model.id for model in client.models.list()] == [MODEL]
    assert httpx.get(url + "/health").status_code == 200


def test_the_engines_span_is_a_child_of_the_gateways(client, spans):
    trace = "0af7651916cd43dd8448eb211c80319c"
    complete(client)  # nobody asked for its trace
    complete(client, extra_headers={"traceparent": f"00-{trace}-b7ad6b7169203331-01"})

    def by_name():
        found = {}
        for export in spans[1]:
            for resource in getattr(export, "resource_spans", ()):
                for scope in resource.scope_spans:
                    found |= {span.name: span for span in scope.spans}
        return found

    wait_until(lambda: {"llm_request", "POST /v1/completions"} <= by_name().keys())
    engines, gateways = by_name()["llm_request"], by_name()["POST /v1/completions"]
    assert engines.trace_id.hex() == gateways.trace_id.hex() == trace
    assert engines.parent_span_id == gateways.span_id
    told = {a.key for a in engines.attributes}
    assert {f"gen_ai.latency.time_in_{part}" for part in ("queue", "model_prefill")} <= told
    assert by_name().keys() == {"llm_request", "POST /v1/completions"}


def test_completion_counts_its_tokens(client):
    answer = complete(client)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 16
    assert answer.usage.prompt_tokens == len(PROMPT)  # one token per byte
    assert complete(client).choices[0].text == answer.choices[0].text


def test_streams_say_the_same_as_whole_answers(client):
    whole = complete(client).choices[0].text
    chunks = list(complete(client, stream=True, stream_options={"include_usage": True}))
    assert "".join(c.choices[0].text for c in chunks if c.choices) == whole
    assert chunks[-1].usage.completion_tokens == 16

    whole = chat(client).choices[0].message.content
    deltas = [chunk.choices[0].delta for chunk in chat(client, stream=True)]
    assert deltas[0].role == "assistant"
    assert "".join(delta.content or "" for delta in deltas) == whole


def test_logprobs(client):
    logprobs = complete(client, logprobs=3).choices[0].logprobs
    assert len(logprobs.token_logprobs) == 16
    assert all(len(top) >= 3 for top in logprobs.top_logprobs)
    assert all(value <= 0 for value in logprobs.token_logprobs)

    content = chat(client, logprobs=True, top_logprobs=2).choices[0].logprobs.content
    assert [len(token.top_logprobs) for token in content] == [2] * 16


def test_stop(client):
    text = complete(client).choices[0].text
    stop = next(c for c in text[1:] if c.isascii())
    stopped = complete(client, stop=[stop]).choices[0]
    assert (stopped.finish_reason, stopped.text) == ("stop", text[: text.index(stop)])


def test_several_choices_and_seeds(client):
    first, second = complete(client, n=2, temperature=1, seed=1).choices
    assert (first.index, second.index) == (0, 1)
    assert first.text != second.text

    def sample(seed):
        return complete(client, temperature=1, seed=seed).choices[0].text

    assert sample(7) == sample(7)
    assert sample(7) != sample(8)


def test_malformed_requests_get_vllms_own_words(client, url):
    with pytest.raises(openai.BadRequestError, match="max_tokens must be at least 1, got -4"):
        complete(client, max_tokens=-4)
    with pytest.raises(openai.BadRequestError, match="maximum context length"):
        complete(client, prompt="x" * (MAX_MODEL_LEN + 1))
    with pytest.raises(openai.NotFoundError, match="`other` does not exist"):
        client.completions.create(model="other", prompt="x")
    broken = httpx.post(
        url + "/v1/completions", content=b"{", headers={"content-type": "application/json"}
    )
    assert broken.status_code == 400
    assert broken.json()["error"]["message"]


def test_requests_at_once(client):
    expected = complete(client).choices[0].text
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda _: complete(client), range(24)))
    assert [answer.choices[0].text for answer in answers] == [expected] * 24


def test_tokenize_and_detokenize(url):
    tokens = httpx.post(url + "/tokenize", json={"model": MODEL, "prompt": PROMPT}).json()["tokens"]
    back = httpx.post(url + "/detokenize", json={"model": MODEL, "tokens": tokens}).json()
    assert back["prompt"] == PROMPT


def test_a_client_that_leaves_aborts_the_generation(client, url):
    before = metric(url, "vllm:generation_tokens_total")
    stream = complete(client, max_tokens=1000, stream=True, extra_body={"ignore_eos": True})
    next(iter(stream))
    stream.close()
    wait_until(lambda: metric(url, "vllm:num_requests_running") == 0)
    assert metric(url, "vllm:generation_tokens_total") - before < 900


def test_a_client_that_gives_up_waiting_aborts_too(client, url):
    before = metric(url, "vllm:generation_tokens_total")
    with pytest.raises(openai.APITimeoutError):
        complete(
            client,
            max_tokens=1000,
            n=4,
            temperature=1,
            timeout=0.5,
            extra_body={"ignore_eos": True},
        )
    wait_until(lambda: metric(url, "vllm:num_requests_running") == 0)
    assert metric(url, "vllm:generation_tokens_total") - before < 4 * 900


def test_the_engine_tells_its_state(engine):
    import ray

    said = ray.get(engine.describe.remote())
    assert (said.state, said.in_flight, said.max_running) == (EngineState.READY, 0, 8)
    assert said.memory_bytes > 100_000
    assert psutil.pid_exists(said.pid)


def test_a_draining_engine_finishes_and_takes_no_more(client, url, engine):
    import ray

    stream = complete(client, max_tokens=1000, stream=True, extra_body={"ignore_eos": True})
    events = iter(stream)
    next(events)
    assert ray.get(engine.drain.remote(0.1)) == 1
    assert ray.get(engine.describe.remote()).state is EngineState.DRAINING
    with pytest.raises(openai.InternalServerError, match="nothing can serve this now"):
        complete(client)
    assert httpx.get(url + "/health").status_code == 503
    assert len(list(events)) > 10
    stream.close()
    assert ray.get(engine.drain.remote(10.0)) == 0


def test_a_killed_engine_leaves_no_process(url, engine):
    import ray

    pid = ray.get(engine.describe.remote()).pid
    process = psutil.Process(pid)
    wait_until(lambda: any("EngineCore" in one.name() for one in process.children(recursive=True)))
    family = process.children(recursive=True)

    os.kill(pid, signal.SIGKILL)

    wait_until(lambda: living(family) == [])
    # The request is kept until another engine comes, or `engine_wait_s` is over.
    body = {"model": MODEL, "prompt": PROMPT}
    answer = httpx.post(url + "/v1/completions", json=body, timeout=120)
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "unavailable"
