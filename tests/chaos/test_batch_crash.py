"""A batch job outlives its runner, its gateway, and the whole mesh."""

import json

import pytest
from openai import OpenAI

from tests.chaos.killing import kill_everything, newest
from tests.checkpoints.make import make_checkpoint
from tests.e2e.mesh_process import MeshProcess, mesh_config, serving, wait_until

pytestmark = [pytest.mark.chaos, pytest.mark.e2e, pytest.mark.ray, pytest.mark.vllm]

REQUESTS = 300


def line(number: int) -> str:
    body = {"model": "tiny", "prompt": f"number {number}", "max_tokens": 12, "temperature": 0}
    value = {"custom_id": f"r{number}", "method": "POST", "url": "/v1/completions", "body": body}
    return json.dumps(value)


def client_of(mesh: MeshProcess) -> OpenAI:
    return OpenAI(base_url=f"{mesh.url}/v1", api_key="unused", max_retries=5, timeout=60)


def test_every_line_comes_once(tmp_path) -> None:
    model = make_checkpoint("qwen3_moe", tmp_path / "model")
    config = mesh_config(model, "batch", cluster={"state_dir": str(tmp_path / "state")})
    with MeshProcess(config) as mesh:
        mesh.wait_for("ready at")
        client = client_of(mesh)
        data = "\n".join(line(n) for n in range(REQUESTS)).encode()
        file = client.files.create(file=("in.jsonl", data), purpose="batch")
        job = client.batches.create(
            input_file_id=file.id, endpoint="/v1/completions", completion_window="24h"
        )

        def answered() -> int:
            return client.batches.retrieve(job.id).request_counts.completed

        wait_until(lambda: answered() > 10, 120, "first answers")
        newest(mesh, "ray::BatchRunner").kill()
        wait_until(lambda: answered() > 60, 120, "a second runner")
        newest(mesh, "ray::ServeReplica").kill()
        wait_until(lambda: answered() > 110, 120, "a second gateway")
        kill_everything(mesh)
    with serving(config) as mesh:
        client = client_of(mesh)
        ended = ("completed", "failed", "expired", "cancelled")
        wait_until(lambda: client.batches.retrieve(job.id).status in ended, 240, "the end")
        done = client.batches.retrieve(job.id)
        assert (done.status, done.error_file_id) == ("completed", None)
        text = client.files.content(done.output_file_id).text
        lines = [json.loads(one) for one in text.splitlines()]
        assert [one["custom_id"] for one in lines] == [f"r{n}" for n in range(REQUESTS)]
        assert done.model_extra["expertmesh"]["computed_again"] > 0
        for number in (0, 150, 299):
            online = mesh.complete(f"number {number}", max_tokens=12)
            assert lines[number]["response"]["body"]["choices"][0]["text"] == online
