"""An engine's throughput with telemetry on and off, in turns on one mesh.

The mesh itself looks at nothing (`telemetry.interval_s` of an hour). Another gateway application
does (`telemetry_watch`), on the same cores: while telemetry is on it looks at the same controller,
shards and engine as a mesh at its defaults does, else at nothing. Counting in dispatchers and
shards is always on; `telemetry_spans` measures spans, `benchmarks.telemetry` what counting costs.

Where the mesh has every core busy, what telemetry takes of the cores is what throughput loses. So
rounds are compared twice: by tokens per second, which whatever else happens on the machine changes,
and by the CPU time of all processes of mesh and telemetry for each token, which it changes less.
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
    """cpu_ms: of all processes below this one, for each token."""

    tokens_per_s: float
    cpu_ms: float


def run_round(client: httpx.Client, seed: int, round_s: float) -> Round:
    """Whole batches, one after the other, for about so long."""
    work = Workload(PROMPTS, PROMPT_TOKENS, NEW_TOKENS)
    began_s, cpu_s, tokens = time.perf_counter(), cpu_below_s(), 0
    while time.perf_counter() - began_s < round_s:
        prompts = work.prompts(seed)
        answer = client.post("/v1/completions", json=body([], NEW_TOKENS) | {"prompt": prompts})
        if not answer.is_success:
            raise RuntimeError(answer.text)
        tokens += answer.json()["usage"]["completion_tokens"]
    took_s = time.perf_counter() - began_s
    return Round(tokens / took_s, (cpu_below_s() - cpu_s) / tokens * 1e3)


def cpu_below_s() -> float:
    """CPU time that the processes below this one have taken: mesh, cluster and telemetry."""
    total_s = 0.0
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total_s += times.user + times.system
    return total_s


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
                 "cpu_ms_on": on.cpu_ms, "cpu_ms_off": off.cpu_ms,
                 "cpu_ratio": on.cpu_ms / off.cpu_ms}
            )  # fmt: skip
            print(rows[-1], flush=True)
    return rows
