"""An engine's throughput with telemetry on and off, in turns on one mesh.

The mesh itself looks at nothing (`telemetry.interval_s` of an hour). While telemetry is on, another
gateway application looks at it as a mesh at its defaults does (`telemetry_watch`): on the same
cores, asking the same controller, shards and engine. Counting in dispatchers and shards is always
on; `telemetry_spans` measures spans, and `benchmarks.telemetry` what counting costs.
"""

import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from benchmarks.batch_serving import body, mesh_config
from benchmarks.harness.telemetry_watch import READY
from benchmarks.harness.timed_engine import Workload
from benchmarks.throughput import make_model
from orchestrator.session.ray_session import namespace_of
from tests.e2e.mesh_process import MeshProcess, environment
from tests.e2e.test_shared_cluster import ray_head
from tests.telemetry.test_otlp import http_collector

PROMPTS, PROMPT_TOKENS, NEW_TOKENS = 32, 32, 48
ROUND_S = 12.0
"""Several looks and scrapes fall into it."""
SETTLE_S = 3.0
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


def tokens_per_s(client: httpx.Client, seed: int, round_s: float) -> float:
    """Whole batches, one after the other, for about so long."""
    work = Workload(PROMPTS, PROMPT_TOKENS, NEW_TOKENS)
    began_s, tokens = time.perf_counter(), 0
    while time.perf_counter() - began_s < round_s:
        prompts = work.prompts(seed)
        answer = client.post("/v1/completions", json=body([], NEW_TOKENS) | {"prompt": prompts})
        if not answer.is_success:
            raise RuntimeError(answer.text)
        tokens += answer.json()["usage"]["completion_tokens"]
    return tokens / (time.perf_counter() - began_s)


def measure(pairs: int, round_s: float = ROUND_S) -> list[dict[str, Any]]:
    """One row for each pair of rounds; which comes first changes from pair to pair."""
    rows = []
    with watched_mesh() as (url, watcher), httpx.Client(base_url=url, timeout=TIMEOUT_S) as client:
        # The first seconds are slow: kernels and buffers are set up.
        tokens_per_s(client, 0, 2 * round_s)
        for pair in range(pairs):
            rates = {}
            for order in ("on", "off") if pair % 2 else ("off", "on"):
                watcher.tell(order)
                time.sleep(SETTLE_S)
                rates[order] = tokens_per_s(client, pair + 1, round_s)
                if order == "on":
                    watcher.tell("off")
            rows.append({**rates, "ratio": rates["on"] / rates["off"]})
            print(rows[-1], flush=True)
    return rows
