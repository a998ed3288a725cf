"""The engine actor by itself: what it refuses, and how it ends when vLLM dies under it."""

import json

import psutil
import pytest

from actors.engine.config import EngineConfig
from actors.engine_lifecycle import EngineState
from actors.messages import HttpRequest, Refusal, ResponseStart
from orchestrator.actor_names import ActorName
from orchestrator.control.lifecycle import Kind
from orchestrator.core_shares import CoreShares
from orchestrator.engine_settings import EXECUTOR_FLAG, ONE_PROCESS_EXECUTOR
from tests.checkpoints.make import make_checkpoint
from tests.orchestrator.gateway.ray_fakes import private_ray

pytestmark = [pytest.mark.vllm, pytest.mark.ray]

BODY = {"model": "tiny", "prompt": "The quick brown fox", "max_tokens": 4}
HEADERS = ((b"content-type", b"application/json"),)
REQUEST = HttpRequest("POST", "/v1/completions", b"", HEADERS, json.dumps(BODY).encode())
LONG_BODY = BODY | {"max_tokens": 400, "ignore_eos": True, "stream": True}
LONG = HttpRequest("POST", "/v1/completions", b"", HEADERS, json.dumps(LONG_BODY).encode())


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(make_checkpoint("qwen3_moe", tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module", autouse=True)
def ray_session():
    with private_ray():
        yield


def start_engine(name, model, **flags):
    """An actor that takes one request at a time."""
    from orchestrator import cluster

    flags = {EXECUTOR_FLAG: ONE_PROCESS_EXECUTOR, "enforce_eager": True, **flags}
    config = EngineConfig(engine_id=name, model=model, served_model_name="tiny", flags=flags)
    actor_name = ActorName(Kind.ENGINE, name, 1)
    return cluster.start_engine(actor_name, config, {}, CoreShares(1, 0.0), max_concurrency=1)


def handle(engine, request=REQUEST):
    import ray

    return [
        ray.get(reply) for reply in engine.handle.options(num_returns="streaming").remote(request)
    ]


def test_a_flag_vllm_does_not_have_ends_the_engine_in_one_line(model):
    import ray

    engine = start_engine("misled", model, max_model_length=512)
    with pytest.raises(ValueError, match=r"no flag `max_model_length`.*`max_model_len`"):
        ray.get(engine.start.remote())
    said = ray.get(engine.describe.remote())
    assert said.state is EngineState.DEAD
    assert "did you mean `max_model_len`?" in said.detail
    (refusal,) = handle(engine)
    assert isinstance(refusal, Refusal)
    assert "engine misled is dead" in refusal.reason
    ray.kill(engine)


def test_an_engine_whose_core_dies_refuses_and_cleans_up(model):
    import ray

    engine = start_engine("mortal", model, max_model_len=512, max_num_seqs=4)
    ray.get(engine.start.remote())
    ray.get(engine.check_health.remote())
    (answer,) = handle(engine)
    assert isinstance(answer, ResponseStart)
    assert json.loads(answer.body)["usage"]["completion_tokens"] == 4

    # A request that runs for long, and one that has to wait for it: control calls do not.
    running = engine.handle.options(num_returns="streaming").remote(LONG)
    waiting = engine.handle.options(num_returns="streaming").remote(REQUEST)
    ray.get(next(running))
    assert ray.get(engine.describe.remote()).in_flight == 1
    ray.get(engine.check_health.remote())
    ray.cancel(running)
    assert ray.get(next(waiting)).status == 200

    actor = psutil.Process(ray.get(engine.describe.remote()).pid)
    (core,) = [p for p in actor.children() if "EngineCore" in p.name()]
    family = [core, *core.children(recursive=True)]
    core.kill()

    (refusal,) = handle(engine)
    assert isinstance(refusal, Refusal)
    assert ray.get(engine.describe.remote()).state is EngineState.DEAD
    with pytest.raises(RuntimeError, match="engine core died"):
        ray.get(engine.check_health.remote())

    ray.get(engine.stop.remote())
    ray.get(engine.stop.remote())
    _, alive = psutil.wait_procs(family, timeout=10)
    assert alive == []
