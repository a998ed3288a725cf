"""How fast batch jobs are, and what online requests notice of them.

    python -m benchmarks.batch_serving [--parts speed,beside,prefix] [--quick] [--json FILE]

The mid-size model of the test checkpoints (8 layers, 64 experts, top-8, 768/384, bf16), random
prompts as token ids, greedy, one engine, two shards.

  speed   a job, from its upload to its output file, against vLLM's own offline loop, which drives
          the shards of the same mesh from a process of its own with the same settings. In turn,
          the other one idle, and when the engine has heard of no online request for a minute.
  beside  time to the first token of online streams that arrive at random, alone and then beside a
          job that has more requests than the engine takes; what the job gets meanwhile, of what
          the online requests leave: its own speed when it is alone less their tokens.
  prefix  a job whose lines begin with the same 1,000 tokens, with vLLM's prefix cache and without.
  upload  how much memory Ray Serve's proxy and the gateway take on top while a large file comes in.
"""

import argparse
import json
import random
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from actors.engine.compiling import starts_eagerly
from actors.process import SHORT_SPIN
from actors.vllm_plugin.online_first import RECENT_S
from benchmarks.harness.batch_job import BatchJob
from benchmarks.harness.local_mesh import SECRET
from benchmarks.harness.peak_memory import MIB, Peak
from benchmarks.harness.report import Report, Target, run_benchmark
from benchmarks.harness.timed_engine import TimedEngine, Workload
from benchmarks.throughput import default_threads, make_model
from tests.chaos.killing import newest
from tests.e2e.mesh_process import MeshProcess
from tests.nodes.meshes import MODEL

SPEED, BESIDE, PREFIX, UPLOAD = "speed", "beside", "prefix", "upload"
PARTS = (SPEED, BESIDE, PREFIX, UPLOAD)
PROMPT, NEW = 32, 32
REQUESTS, QUICK_REQUESTS = 512, 128
ROUNDS, QUICK_ROUNDS = 3, 1
ONLINE, QUICK_ONLINE = 120, 30
EVERY_S = 0.7
"""Mean time between two online requests."""
SHARED, TAIL, SHORT = 1000, 16, 4
PREFIX_REQUESTS, QUICK_PREFIX_REQUESTS = 128, 32
MODEL_LENGTH = 1024 + TAIL + SHORT
ENGINE_FLAGS = {"max_num_seqs": 64, "max_num_batched_tokens": 2048}
"""As `engine_process` has them."""
SPEED_GOAL, PREFIX_GOAL, LEFT_GOAL = 0.95, 2.0, 0.8
TTFT_P50_GOAL, TTFT_P99_GOAL = 1.25, 1.5
UPLOAD_BYTES, QUICK_UPLOAD_BYTES = 1000 * MIB, 200 * MIB
UPLOAD_GOAL_MIB = 64.0
RECEIVERS = {"proxy": "ray::ProxyActor", "gateway": "ray::ServeReplica"}
TIMEOUT_S = 1200.0


def mesh_config(model: Path, prefix_caching: bool) -> dict[str, Any]:
    pool = {"vendor": "cpu", "memory": "1GiB", "speed": 1.0}
    return {
        "mesh": {"name": "batch"},
        "model": {"path": str(model), "served_name": MODEL, "max_model_len": MODEL_LENGTH},
        "engines": {"vllm": ENGINE_FLAGS | {"enable_prefix_caching": prefix_caching}},
        "pools": {"a": pool, "b": pool},
        "gateway": {"port": 0},
        "controller": {"rebalance_pause_s": 3600},
    }


@contextmanager
def mesh_of(model: Path, prefix_caching: bool = False) -> Iterator[MeshProcess]:
    secret = {"EXPERTMESH_SECRET": SECRET.decode()}
    with MeshProcess(mesh_config(model, prefix_caching), variables=secret) as mesh:
        mesh.wait_for("ready at")
        yield mesh


def body(prompt: Sequence[int], new: int) -> dict[str, Any]:
    return {
        "model": MODEL,
        "prompt": list(prompt),
        "max_tokens": new,
        "temperature": 0,
        "ignore_eos": True,
    }


def timed_job(url: str, prompts: Sequence[Sequence[int]], new: int) -> float:
    """Seconds from the upload until the output file is there."""
    began_s = time.perf_counter()
    job = BatchJob(url, [body(prompt, new) for prompt in prompts])
    end = job.wait_ended(TIMEOUT_S)
    took_s = time.perf_counter() - began_s
    assert (end.status, end.failed) == ("completed", 0), end
    return took_s


# -- speed


def measure_speed(
    mesh: MeshProcess, model: Path, requests: int, rounds: int
) -> tuple[list[dict[str, Any]], list[Target]]:
    rows, ready_s = [], time.monotonic()
    status = mesh.quick_status()
    # What they compile is kept apart: the mesh's engine has its own in the run folder.
    with tempfile.TemporaryDirectory() as cache:
        offline = TimedEngine(
            model,
            default_threads(),
            status["address"],
            compiled=not starts_eagerly(on_cpu=True),
            more=SHORT_SPIN | {"VLLM_CACHE_ROOT": cache},
        )
        with closing(offline.wait_ready()):
            offline.run(Workload(64, PROMPT, 2), seed=99)
            timed_job(mesh.url, Workload(64, PROMPT, 2).prompts(99), 2)
            # The mesh has asked itself first, as a client does.
            time.sleep(max(0.0, ready_s + RECENT_S - time.monotonic()))
            for seed in range(rounds):
                work = Workload(requests, PROMPT, NEW)
                job = requests * NEW / timed_job(mesh.url, work.prompts(seed), NEW)
                loop = offline.run(work, seed).tokens_per_s
                rows.append(
                    {"part": SPEED, "job_tokens_per_s": job, "offline_tokens_per_s": loop,
                     "x": job / loop}
                )  # fmt: skip
                print(rows[-1], flush=True)
    ratio = float(np.median([row["x"] for row in rows]))
    return rows, [Target("job / offline vLLM", ratio, SPEED_GOAL, "min", "x", timed=True)]


# -- beside


@dataclass(slots=True)
class Online:
    """Streams that begin at random times. first_s: until the first token of each."""

    url: str
    first_s: list[float] = field(default_factory=list)
    failed: int = 0

    def run(self, count: int, seed: int) -> float:
        """Seconds that it took; returns when all have ended."""
        chance = random.Random(seed)
        prompts = Workload(count, PROMPT, NEW).prompts(1000 + seed)
        began_s = time.perf_counter()
        threads = [threading.Thread(target=self._stream, args=(prompt,)) for prompt in prompts]
        for thread in threads:
            thread.start()
            time.sleep(chance.expovariate(1 / EVERY_S))
        for thread in threads:
            thread.join()
        return time.perf_counter() - began_s

    def _stream(self, prompt: list[int]) -> None:
        asked = body(prompt, NEW) | {"stream": True}
        began_s = time.perf_counter()
        first = True
        with (
            httpx.Client(timeout=TIMEOUT_S, trust_env=False) as client,
            client.stream("POST", f"{self.url}/v1/completions", json=asked) as answer,
        ):
            self.failed += answer.status_code != 200
            for line in answer.iter_lines():
                if first and line.startswith("data: {"):
                    self.first_s.append(time.perf_counter() - began_s)
                    first = False

    def ms(self, percentile: float) -> float:
        return float(1e3 * np.percentile(self.first_s, percentile))


def measure_beside(
    mesh: MeshProcess, count: int, requests: int
) -> tuple[list[dict[str, Any]], list[Target]]:
    # Prompts must not repeat, for the prefix cache is not what is measured.
    alone_tokens_per_s = (
        requests * NEW / timed_job(mesh.url, Workload(requests, PROMPT, NEW).prompts(7), NEW)
    )
    quiet = Online(mesh.url)
    quiet.run(count, seed=0)
    # Enough that the job outlasts the online requests.
    many = int(2 * count * EVERY_S * alone_tokens_per_s / NEW) + requests
    work = Workload(many, PROMPT, NEW).prompts(8)
    job = BatchJob(mesh.url, [body(prompt, NEW) for prompt in work])
    before = job.wait(64, TIMEOUT_S).answered
    busy = Online(mesh.url)
    took_s = busy.run(count, seed=0)
    now = job.progress()
    assert now is not None
    assert now.status == "in_progress", "the job ended too soon"
    rate = (now.answered - before) * NEW / took_s
    left = alone_tokens_per_s - count * NEW / took_s
    rows = [
        {"part": BESIDE, "online": "alone", "ttft_p50_ms": quiet.ms(50),
         "ttft_p99_ms": quiet.ms(99), "failed": quiet.failed, "job_tokens_per_s": 0.0},
        {"part": BESIDE, "online": "beside a job", "ttft_p50_ms": busy.ms(50),
         "ttft_p99_ms": busy.ms(99), "failed": busy.failed, "job_tokens_per_s": rate},
        {"part": BESIDE, "online": "none", "ttft_p50_ms": 0.0, "ttft_p99_ms": 0.0, "failed": 0,
         "job_tokens_per_s": alone_tokens_per_s},
    ]  # fmt: skip
    p50, p99 = (busy.ms(p) / quiet.ms(p) for p in (50, 99))
    return rows, [
        Target("failed online", quiet.failed + busy.failed, 0, "max", ""),
        Target("TTFT p50 beside a job", p50, TTFT_P50_GOAL, "max", "x", timed=True),
        Target("TTFT p99 beside a job", p99, TTFT_P99_GOAL, "max", "x", timed=True),
        Target("job, of what is left", rate / left, LEFT_GOAL, "min", "x", timed=True),
    ]


# -- prefix


def shared_prompts(requests: int, seed: int) -> list[list[int]]:
    (shared,) = Workload(1, SHARED, SHORT).prompts(seed)
    return [shared + tail for tail in Workload(requests, TAIL, SHORT).prompts(seed + 1)]


def measure_prefix(
    cached: MeshProcess, plain: MeshProcess, requests: int, rounds: int
) -> tuple[list[dict[str, Any]], list[Target]]:
    rows = []
    for mesh in (cached, plain):
        timed_job(mesh.url, Workload(8, SHARED + TAIL, 2).prompts(99), 2)
    for seed in range(rounds):
        prompts = shared_prompts(requests, 10 * seed)
        took_s = [timed_job(mesh.url, prompts, SHORT) for mesh in (cached, plain)]
        rows.append(
            {"part": PREFIX, "cached_requests_per_s": requests / took_s[0],
             "plain_requests_per_s": requests / took_s[1], "x": took_s[1] / took_s[0]}
        )  # fmt: skip
        print(rows[-1], flush=True)
    ratio = float(np.median([row["x"] for row in rows]))
    return rows, [Target("prefix cache on / off", ratio, PREFIX_GOAL, "min", "x", timed=True)]


# -- upload


def measure_upload(mesh: MeshProcess, size: int) -> tuple[list[dict[str, Any]], list[Target]]:
    line = json.dumps({"custom_id": "x", "body": {"prompt": "word " * 200}}).encode() + b"\n"
    with tempfile.TemporaryFile() as file:
        for _ in range(size // len(line)):
            file.write(line)
        file.seek(0)
        began_s = time.perf_counter()
        with Peak({name: newest(mesh, title) for name, title in RECEIVERS.items()}) as peak:
            answer = httpx.post(
                f"{mesh.url}/v1/files",
                data={"purpose": "batch"},
                files={"file": ("large.jsonl", file)},
                timeout=TIMEOUT_S,
                trust_env=False,
            )
        took_s = time.perf_counter() - began_s
    id = answer.raise_for_status().json()["id"]
    httpx.delete(f"{mesh.url}/v1/files/{id}", timeout=60, trust_env=False).raise_for_status()
    grown = {f"{name}_mib": peak.grown_mib(name) for name in RECEIVERS}
    rows = [{"part": UPLOAD, "mib": size / MIB, "mib_per_s": size / MIB / took_s, **grown}]
    return rows, [
        Target(f"{name}: memory for an upload", peak.grown_mib(name), UPLOAD_GOAL_MIB, "max", "MiB")
        for name in RECEIVERS
    ]


def measure(arguments: argparse.Namespace) -> Report:
    parts = arguments.parts.split(",")
    rounds = QUICK_ROUNDS if arguments.quick else ROUNDS
    requests = QUICK_REQUESTS if arguments.quick else REQUESTS
    found = []
    with ExitStack() as stack:
        model = make_model(Path(stack.enter_context(tempfile.TemporaryDirectory())) / "model")
        plain = stack.enter_context(mesh_of(model))
        if SPEED in parts:
            found.append(measure_speed(plain, model, requests, rounds))
        if BESIDE in parts:
            online = QUICK_ONLINE if arguments.quick else ONLINE
            found.append(measure_beside(plain, online, requests))
        if PREFIX in parts:
            cached = stack.enter_context(mesh_of(model, prefix_caching=True))
            lines = QUICK_PREFIX_REQUESTS if arguments.quick else PREFIX_REQUESTS
            found.append(measure_prefix(cached, plain, lines, rounds))
        if UPLOAD in parts:
            size = QUICK_UPLOAD_BYTES if arguments.quick else UPLOAD_BYTES
            found.append(measure_upload(plain, size))
    notes = [
        f"{requests} requests of {PROMPT} + {NEW} tokens; online every {EVERY_S:g} s on average",
    ]
    return Report(
        "batch_serving",
        [row for rows, _ in found for row in rows],
        [target for _, targets in found for target in targets],
        notes,
    )


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--parts", default=",".join(PARTS), help=f"of {', '.join(PARTS)}")


if __name__ == "__main__":
    run_benchmark(__doc__ or "", measure, options)
