"""Two of three real engines are lost under load, one killed, one stopped: every answer is the
undisturbed one."""

import os
import signal
import threading
import time
from contextlib import contextmanager

import httpx
import psutil
import pytest

from actors.engine.config import EngineConfig
from orchestrator.clients.ray_mesh import RayMeshClient
from orchestrator.gateway.config import GatewayConfig
from orchestrator.gateway.deploy import deploy_gateway, remove_gateway
from tests.actors.engine.test_continuing import CHAT, FLAGS, PROMPT, comparable
from tests.checkpoints.make import make_checkpoint
from tests.orchestrator.gateway.ray_fakes import (
    CONTROLLER,
    NAMESPACE,
    FakeController,
    free_port,
    private_ray,
    start_actor,
)
from tests.processes import wait_until

pytestmark = [pytest.mark.vllm, pytest.mark.ray, pytest.mark.long]

NAMES = ["a", "b", "c"]
LONG = {"max_tokens": 800, "ignore_eos": True}
"""Long enough for none to be ready, also on a fast machine, when the last one is under way."""
ASKED = (
    ("/v1/completions", PROMPT | LONG),
    ("/v1/completions", PROMPT | LONG | {"logprobs": 2}),
    ("/v1/completions", PROMPT | LONG | {"presence_penalty": 0.7, "frequency_penalty": 0.4}),
    ("/v1/completions", PROMPT | LONG | {"temperature": 1.0, "seed": 7, "top_p": 0.9}),
    ("/v1/completions", PROMPT | LONG | {"stop": ["never said by it"]}),
    ("/v1/chat/completions", CHAT | LONG),
)
"""Each asked as a stream and whole: four requests for each engine."""
UNDER_WAY_BYTES = 2000


@pytest.fixture(scope="module")
def engines(tmp_path_factory):
    """Name -> process id of an engine's actor."""
    import ray

    from actors.engine.engine import Engine

    model = make_checkpoint("dense", tmp_path_factory.mktemp("model"))
    flags = FLAGS | {
        "trust_request_chat_template": True,
        "max_model_len": 1024,
        "max_num_seqs": 16,
        "max_num_batched_tokens": 512,
    }
    with private_ray():
        controller = start_actor(FakeController, CONTROLLER, NAMES)
        actors = []
        for name in NAMES:
            config = EngineConfig(
                engine_id=name, model=str(model), served_model_name="tiny", flags=flags,
                environment={"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"},
            )  # fmt: skip
            actors.append(start_actor(Engine, name, config))
        ray.get([actor.start.remote() for actor in actors])
        yield {
            name: ray.get(actor.describe.remote()).pid
            for name, actor in zip(NAMES, actors, strict=True)
        }
        ray.get(actors[2].stop.remote())
        del controller


@pytest.fixture(scope="module")
def client(engines):
    assert set(engines) == set(NAMES)
    config = GatewayConfig(mesh="test", model_name="tiny", port=free_port())
    url = deploy_gateway(config, RayMeshClient(CONTROLLER, NAMESPACE))
    with httpx.Client(base_url=url, timeout=120) as client:
        wait_until(lambda: client.get("/health").status_code == 200)
        yield client
    remove_gateway("test")


class Asked(threading.Thread):
    """One request on its way."""

    def __init__(self, client, path, fields, stream):
        super().__init__()
        self._client, self._path, self._stream = client, path, stream
        options = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
        self._body = {"model": "tiny"} | fields | options
        self.body = b""
        self.began_s = 0.0
        self.start()

    def run(self):
        self.began_s = time.monotonic()
        headers = {"x-request-id": "same"}
        with self._client.stream("POST", self._path, json=self._body, headers=headers) as answer:
            for chunk in answer.iter_raw():
                self.body += chunk

    @property
    def under_way(self):
        return len(self.body) > UNDER_WAY_BYTES if self._stream else True

    def answer(self):
        self.join()
        return comparable(self.body, self._stream)


@contextmanager
def all_under_way(client):
    requests = [Asked(client, *asked, stream) for asked in ASKED for stream in (True, False)]
    try:
        wait_until(lambda: all(request.under_way for request in requests))
        yield requests
    finally:
        for request in requests:
            request.join()


@pytest.fixture(scope="module")
def undisturbed(client):
    with all_under_way(client) as requests:
        pass
    return [request.answer() for request in requests]


def continued(client):
    (line,) = [
        line
        for line in client.get("/metrics").text.splitlines()
        if line.startswith("expertmesh_gateway_continued_total")
    ]
    return float(line.split()[-1])


def test_killed(client, engines, undisturbed):
    with all_under_way(client) as requests:
        os.kill(engines["a"], signal.SIGKILL)
    assert [request.answer() for request in requests] == undisturbed
    assert continued(client) >= 2


def test_stopped(client, engines, undisturbed):
    before = continued(client)
    stopped = psutil.Process(engines["b"])
    with all_under_way(client) as requests:
        stopped.suspend()
    assert [request.answer() for request in requests] == undisturbed
    assert continued(client) - before >= 2
    stopped.kill()
