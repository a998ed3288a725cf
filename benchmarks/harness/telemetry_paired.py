"""An engine's throughput with telemetry on and off, in turns on one mesh.

The mesh itself looks at nothing (`telemetry.interval_s` of an hour). Another gateway application
does (`telemetry_watch`), on the same cores: while telemetry is on it looks at the same controller,
shards and engine as a mesh at its defaults does, else at nothing. Counting in dispatchers and
shards is always on; `telemetry_spans` measures spans, `benchmarks.telemetry` what counting costs.

Rounds of ten seconds differ by several percent for other reasons, so the second figure is the CPU
time that telemetry adds in processes that compute no tokens (gateways, controller, the engine's
front, Ray), over that of all processes. What it costs in shards and engine cores, where it only
counts, is in the first figure alone.
"""

import contextlib
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from benchmarks.batch_serving import body, mesh_config
from benchmarks.harness.telemetry_watch import READY
from benchmarks.harness.timed_engine import Workload
from benchmarks.throughput import make_model
from orchestrator.session.ray_session import namespace_of
from tests.e2e.mesh_process import MeshProcess, environment
from tests.e2e.test_shared_cluster import ray_head
from tests.telemetry.test_otlp import http_collector

PROMPTS, PROMPT_TOKENS, NEW_TOKENS = 32, 32, 48
ROUND_S = 10.0
"""Five looks and two scrapes fall into it."""
COMPUTING = ("VLLM::EngineCore", "ray::ExpertShard")
"""In the titles of processes that compute tokens."""
SETTLE_S = 1.5
"""After telemetry was turned on or off."""
TIMEOUT_S = 300.0
OFF = {"interval_s": 3600}


class Watcher:
    """`telemetry_watch` as a process."""

    def __init__(self, ray_address: str, name: str, endpoint: str) -> None:
        module = "benchmarks.harness.telemetry_watch"
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, ray_address, namespace_of(name), endpoint],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=environment(RAY_AUTH_MODE="disabled"),
        )  # fmt: skip
        self._answered()

    def tell(self, order: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(order + "\n")
        self._process.stdin.flush()
        self._answered()

    def _answered(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.strip() == READY:
                return
        raise RuntimeError("the watching process has ended")

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


@contextmanager
def watched_mesh() -> Iterator[tuple[str, Watcher]]:
    with (
        tempfile.TemporaryDirectory() as folder,
        http_collector([]) as endpoint,
        ray_head() as address,
    ):
        config = mesh_config(make_model(Path(folder) / "model"), prefix_caching=False)
        config |= {"telemetry": OFF, "cluster": {"ray_address": address}}
        with MeshProcess(config) as mesh:
            mesh.wait_for("ready at")
            watcher = Watcher(address, config["mesh"]["name"], endpoint)
            try:
                yield mesh.url, watcher
            finally:
                watcher.close()
                # In order: killed, its batch runner would live on in this cluster, and write files.
                mesh.signal(signal.SIGTERM)
                mesh.wait()


@dataclass(frozen=True, slots=True)
class Round:
    """cpu, beside: CPU time of all processes below this one in a second, and of those of them that
    compute no tokens."""

    tokens_per_s: float
    cpu: float
    beside: float


def run_round(client: httpx.Client, seed: int, round_s: float) -> Round:
    """Whole batches, one after the other, for about so long."""
    work = Workload(PROMPTS, PROMPT_TOKENS, NEW_TOKENS)
    began_s, before, tokens = time.perf_counter(), cpu_below_s(), 0
    while time.perf_counter() - began_s < round_s:
        prompts = work.prompts(seed)
        answer = client.post("/v1/completions", json=body([], NEW_TOKENS) | {"prompt": prompts})
        if not answer.is_success:
            raise RuntimeError(answer.text)
        tokens += answer.json()["usage"]["completion_tokens"]
    took_s = time.perf_counter() - began_s
    cpu, beside = (now_s - then_s for now_s, then_s in zip(cpu_below_s(), before, strict=True))
    return Round(tokens / took_s, cpu / took_s, beside / took_s)


def cpu_below_s() -> tuple[float, float]:
    """CPU time that the processes below this one have taken (mesh, cluster and telemetry), and what
    of that those took that compute no tokens."""
    all_s = beside_s = 0.0
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            times, title = process.cpu_times(), "".join(process.cmdline())
            all_s += times.user + times.system
            if not any(name in title for name in COMPUTING):
                beside_s += times.user + times.system
    return all_s, beside_s


def measure(pairs: int, round_s: float = ROUND_S) -> list[dict[str, Any]]:
    """One row for each pair of rounds; which comes first changes from pair to pair."""
    rows = []
    with watched_mesh() as (url, watcher), httpx.Client(base_url=url, timeout=TIMEOUT_S) as client:
        # The first seconds are slow: kernels and buffers are set up.
        run_round(client, 0, 2 * round_s)
        for pair in range(pairs):
            rounds = {}
            for order in ("on", "off") if pair % 2 else ("off", "on"):
                watcher.tell(order)
                time.sleep(SETTLE_S)
                rounds[order] = run_round(client, pair + 1, round_s)
            on, off = rounds["on"], rounds["off"]
            rows.append(
                {"on": on.tokens_per_s, "off": off.tokens_per_s,
                 "ratio": on.tokens_per_s / off.tokens_per_s,
                 "beside_on": on.beside, "beside_off": off.beside, "cpu": off.cpu,
                 "added": (on.beside - off.beside) / off.cpu}
            )  # fmt: skip
            print(rows[-1], flush=True)
    return rows
