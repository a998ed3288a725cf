"""The examples, run as their readers would run them."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.e2e.mesh_process import ROOT, MeshProcess, environment, run_cli, wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.ray, pytest.mark.vllm]

START_TIMEOUT_S = 240.0
ONE_PROCESS = "vllm.v1.executor.uniproc_executor.UniProcExecutor"


def test_openai_client(mesh: MeshProcess) -> None:
    command = [sys.executable, "examples/openai_client.py", "--url", mesh.url]
    done = subprocess.run(
        [*command, "--max-tokens", "16", "one two three"],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment(),
        cwd=ROOT,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    text, rivals = done.stdout.split("\n\n", maxsplit=1)
    assert text == "one two three" + mesh.complete("one two three")
    assert rivals.startswith("after 'one two three': ")


@pytest.fixture(scope="module")
def vllm_url(
    mesh: MeshProcess, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """A `vllm serve` of its own that leaves its experts to the mesh."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    folder = tmp_path_factory.mktemp("vllm")
    venv = Path(sys.executable).parent
    variables = {
        "VIRTUAL_ENV": str(venv.parent),
        "PATH": f"{venv}{os.pathsep}{os.environ['PATH']}",
        "TMPDIR": str(folder),
        "VLLM_NO_USAGE_STATS": "1",
    }
    flags = ["--port", str(port), "--served-model-name", "tiny", "--max-num-seqs", "16"]
    # One process less to start than vLLM's own default for CPUs.
    flags += ["--distributed-executor-backend", ONE_PROCESS]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            ["examples/vllm_client/run.sh", str(tiny_model), mesh.url, *flags],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment(**variables),
            cwd=ROOT,
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{port}"

    def healthy() -> bool:
        assert process.poll() is None, (folder / "log").read_text()[-4000:]
        try:
            return httpx.get(f"{url}/health", timeout=5, trust_env=False).status_code == 200
        except httpx.HTTPError:
            return False

    try:
        wait_until(healthy, START_TIMEOUT_S, "vllm serve")
        yield url
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_a_plain_vllm_serve_gives_the_same_tokens(mesh: MeshProcess, vllm_url: str) -> None:
    prompts = ["one two three", "hello", "a b c d"]
    for prompt in prompts:
        body = {"model": "tiny", "prompt": prompt, "max_tokens": 16, "temperature": 0}
        answer = httpx.post(f"{vllm_url}/v1/completions", json=body, timeout=60, trust_env=False)
        assert answer.json()["choices"][0]["text"] == mesh.complete(prompt)


def test_usage_is_told() -> None:
    done = subprocess.run(
        ["examples/vllm_client/run.sh"], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("usage: ")


def test_batch_job(mesh: MeshProcess, tmp_path: Path) -> None:
    """OpenAI's client, then the command as the example's text has it."""
    done = subprocess.run(
        [sys.executable, "examples/batch/submit.py"],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment(EXPERTMESH_URL=mesh.url),
        cwd=ROOT,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("completed ")
    assert "prompt-0 " + mesh.complete("In the beginning") in done.stdout
    command = ["batch", "submit", "examples/batch/prompts.jsonl", "--template", "Translate: {text}"]
    fields = ["--endpoint", "/v1/completions", "--body", '{"max_tokens": 16, "temperature": 0}']
    done = run_cli(*command, *fields, "--wait", "--json", "--url", mesh.url)
    assert done.returncode == 0, done.stderr
    output = tmp_path / "answers.jsonl"
    job = json.loads(done.stdout)["id"]
    assert run_cli("batch", "results", job, "-o", str(output), "--url", mesh.url).returncode == 0
    answers = [json.loads(line) for line in output.read_text().splitlines()]
    assert [answer["custom_id"] for answer in answers] == ["one", "two", "three"]
