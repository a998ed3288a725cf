"""The real thing: OpenAI's client, Serve, the runner's actor and a vLLM engine.

One engine serves all tests of this module.
"""

import json
import os
import signal

import openai
import pytest
import ray

from actors.engine.config import EngineConfig
from actors.engine.engine import Engine
from orchestrator import cluster
from orchestrator.batch.runner_process import BatchRunner
from orchestrator.batch.settings import BatchSettings
from orchestrator.clients.ray_mesh import RayMeshClient
from orchestrator.config.batch import BatchConfig
from orchestrator.config.schema import LoggingConfig
from orchestrator.engine_settings import EXECUTOR_FLAG, ONE_PROCESS_EXECUTOR
from orchestrator.gateway.config import GatewayConfig
from orchestrator.gateway.deploy import deploy_gateway, remove_gateway
from tests.batch.desk import MODEL, Desk
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

ENGINE = "engine-0"


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    folder = tmp_path_factory.mktemp("batch")
    flags = {
        "max_model_len": 512,
        "max_num_seqs": 8,
        "scheduling_policy": "priority",
        EXECUTOR_FLAG: ONE_PROCESS_EXECUTOR,
    }
    model = str(make_checkpoint("qwen3_moe", tmp_path_factory.mktemp("model")))
    settings = BatchSettings(
        config=BatchConfig(min_free_disk=0),
        folder=folder,
        model_name=MODEL,
        max_line_bytes=1 << 20,
    )
    mesh = RayMeshClient(CONTROLLER, NAMESPACE)
    config = EngineConfig(engine_id=ENGINE, model=model, served_model_name=MODEL, flags=flags)
    with private_ray():
        controller = start_actor(FakeController, CONTROLLER, [ENGINE])
        engine = start_actor(Engine, ENGINE, config)
        ray.get(engine.start.remote())
        gateway = GatewayConfig(mesh="test", model_name=MODEL, port=free_port(), batch=settings)
        url = deploy_gateway(gateway, mesh)
        cluster.start_batch_runner(
            LoggingConfig(), BatchRunner, settings, mesh, LoggingConfig(), cluster.BATCH_RUNNER
        )
        with openai.OpenAI(base_url=url + "/v1", api_key="none", max_retries=0) as client:
            yield Desk(url, client, None, settings, None)
        remove_gateway("test")
        ray.get(engine.stop.remote())
        del controller


def completion(custom_id, prompt, **body):
    body = {"model": MODEL, "prompt": prompt, "max_tokens": 8, "temperature": 0, **body}
    value = {"custom_id": custom_id, "method": "POST", "url": "/v1/completions", "body": body}
    return json.dumps(value)


def test_a_job_says_what_online_requests_say(desk):
    prompts = [f"prompt number {n}" for n in range(20)]
    lines = [completion(f"r{n}", prompt) for n, prompt in enumerate(prompts)]
    lines.append(completion("too-long", "x" * 600))
    job = desk.wait(desk.submit(lines, endpoint="/v1/completions"), timeout_s=120)
    assert job.status == "completed"
    assert (job.request_counts.completed, job.request_counts.failed) == (20, 1)
    output = {one["custom_id"]: one for one in desk.lines(job.output_file_id)}
    for n in (0, 7, 19):
        online = desk.client.completions.create(
            model=MODEL, prompt=prompts[n], max_tokens=8, temperature=0
        )
        batch = output[f"r{n}"]["response"]["body"]
        assert batch["choices"][0]["text"] == online.choices[0].text
    (refused,) = desk.lines(job.error_file_id)
    assert refused["response"]["status_code"] == 400
    assert "maximum context length" in refused["response"]["body"]["error"]["message"]


def test_a_runner_that_is_killed_goes_on(desk):
    lines = [completion(f"r{n}", f"text {n}", max_tokens=32) for n in range(100)]
    job = desk.submit(lines, endpoint="/v1/completions")
    runner = cluster.find_batch_runner()
    for answered in (5, 40):
        wait_until(
            lambda n=answered: desk.client.batches.retrieve(job.id).request_counts.completed >= n,
            120,
        )
        os.kill(ray.get(runner.status.remote())["pid"], signal.SIGKILL)
    job = desk.wait(job, timeout_s=180)
    assert job.status == "completed"
    assert sorted(one["custom_id"] for one in desk.lines(job.output_file_id)) == sorted(
        f"r{n}" for n in range(100)
    )


def test_an_online_request_does_not_wait_for_a_batch_request_to_end(desk):
    def ask():
        desk.client.completions.create(model=MODEL, prompt="now", max_tokens=1, temperature=0)

    ask()  # from now on the engine leaves room for online requests
    lines = [
        completion(f"r{n}", f"long text {n}", max_tokens=480, ignore_eos=True) for n in range(24)
    ]
    job = desk.submit(lines, endpoint="/v1/completions")
    engine = ray.get_actor(ENGINE, namespace=NAMESPACE)

    def load():
        told = ray.get(engine.describe.remote())
        return told.running, told.waiting

    # One of eight sequences stays free, although requests wait.
    wait_until(lambda: load()[0] == 7 and load()[1] > 0, 120)
    for _ in range(5):
        ask()
    assert desk.client.batches.retrieve(job.id).request_counts.completed == 0
    desk.client.batches.cancel(job.id)
    assert desk.wait(job, timeout_s=120).status == "cancelled"
