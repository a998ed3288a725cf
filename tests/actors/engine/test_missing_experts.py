"""Experts without a live replica: their requests fail, the engine and everybody else go on."""

import json
import os

import psutil
import pytest

from actors.dispatch.subscription import ADDRESS_VARIABLE, SECRET_VARIABLE
from actors.engine.config import EngineConfig
from actors.engine_lifecycle import EngineState
from actors.messages import HttpRequest, ResponseStart
from benchmarks.harness.local_mesh import SECRET, LocalMesh, ShardShape
from orchestrator.engine_settings import EXECUTOR_FLAG, ONE_PROCESS_EXECUTOR
from tests.checkpoints.make import make_checkpoint
from tests.orchestrator.gateway.ray_fakes import private_ray, start_actor

pytestmark = [pytest.mark.vllm, pytest.mark.ray, pytest.mark.long]

EXPERT_WAIT_S = 0.5
PROMPT = list(range(10, 90))
"""Longer than a block of the KV cache, so that it would be found there again."""
FLAGS = {
    "max_model_len": 512,
    "max_num_seqs": 4,
    "block_size": 32,
    "max_num_batched_tokens": 128,
    "enforce_eager": True,
    EXECUTOR_FLAG: ONE_PROCESS_EXECUTOR,
}


def completion(stream: bool = False, **fields: object) -> HttpRequest:
    body = {"model": "tiny", "prompt": PROMPT, "max_tokens": 8, "temperature": 0, "stream": stream}
    headers = ((b"content-type", b"application/json"),)
    return HttpRequest("POST", "/v1/completions", b"", headers, json.dumps(body | fields).encode())


def handle(engine, request: HttpRequest) -> tuple[ResponseStart, bytes]:
    """(start, whole body) of the answer."""
    import ray

    replies = engine.handle.options(num_returns="streaming").remote(request)
    start, *chunks = [ray.get(reply) for reply in replies]
    return start, start.body + b"".join(chunks)


def text_of(answer: tuple[ResponseStart, bytes]) -> str:
    start, body = answer
    assert start.status == 200, body
    return json.loads(body)["choices"][0]["text"]


def serve(mesh: LocalMesh) -> None:
    mesh.serve([ShardShape()], expert_wait_s=EXPERT_WAIT_S)


def lose_experts(mesh: LocalMesh) -> None:
    for pid in mesh.pids:
        psutil.Process(pid).kill()


@pytest.fixture
def mesh(tmp_path):
    model = make_checkpoint("qwen3_moe", tmp_path / "model")
    with LocalMesh(model, tmp_path / "m") as mesh:
        serve(mesh)
        yield mesh, model


@pytest.fixture
def engine(mesh):
    import ray

    from actors.engine.engine import Engine

    environment = {
        ADDRESS_VARIABLE: mesh[0].address,
        SECRET_VARIABLE: SECRET.decode(),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
    }
    config = EngineConfig(
        engine_id="e0", model=str(mesh[1]), served_model_name="tiny", flags=FLAGS,
        environment=environment,
    )  # fmt: skip
    with private_ray():
        engine = start_actor(Engine, "engine/e0", config)
        ray.get(engine.start.remote())
        yield engine
        ray.get(engine.stop.remote())


def test_requests_without_experts_fail_and_leave_nothing_behind(mesh, engine):
    import ray

    first = text_of(handle(engine, completion(prompt=[7] * 80)))
    replies = engine.handle.options(num_returns="streaming").remote(
        completion(stream=True, max_tokens=400, ignore_eos=True)
    )
    begun = ray.get(next(replies))
    assert begun.status == 200
    lose_experts(mesh[0])

    # A stream that has begun ends with an error event.
    rest = b"".join(ray.get(reply) for reply in replies)
    (error,) = [line for line in rest.splitlines() if b'"error"' in line]
    assert json.loads(error.removeprefix(b"data: "))["error"]["code"] == "experts_unavailable"

    # Others fail before anything was said, streams too.
    unseen = [*PROMPT, 60, 61, 62]
    for stream in (False, True):
        start, body = handle(engine, completion(stream, prompt=unseen))
        assert start.status == 503
        assert (b"x-expertmesh-error", b"experts_unavailable") in start.headers
        assert json.loads(body)["error"]["code"] == "experts_unavailable"
    assert ray.get(engine.describe.remote()).state is EngineState.READY

    # With experts again the engine answers, and nothing that a failed step wrote is used: a salt
    # keeps a request's KV entries apart from those of others.
    serve(mesh[0])
    assert text_of(handle(engine, completion(prompt=[7] * 80))) == first
    clean = text_of(handle(engine, completion(prompt=unseen, cache_salt="clean")))
    assert text_of(handle(engine, completion(prompt=unseen))) == clean
    assert text_of(handle(engine, completion(cache_salt="clean"))) == text_of(
        handle(engine, completion())
    )
