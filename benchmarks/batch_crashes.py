"""Every answer once: a batch job whose parts are killed at random moments, and then all of them.

    python -m benchmarks.batch_crashes [--requests 10000] [--seed 0] [--quick] [--json FILE]

The demo through the whole mesh: two gateway replicas, two engines, three shards that hold every
expert twice. While a job runs a gateway replica, an engine, two shards, the controller and the
batch runner are each ended with SIGKILL, in an order and after numbers of answers that are drawn
with the seed; then every process of the mesh, and `expertmesh serve` is started again with the same
state folder. Nobody does anything else. In the end each line of the input must have one line in the
output file or the error file.

  answered  lines that had an answer when a part was killed
  stall_s   from then until the next answer
  other     texts that are not what the mesh answered before anything was killed. Sums of an
            expert's rows are grouped by shard: where two tokens are nearly tied a text may take
            the other one
"""

import argparse
import json
import os
import random
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx

from benchmarks.chaos import chaos_config, components
from benchmarks.correctness import DEMO
from benchmarks.harness.batch_job import BatchJob, text_of
from benchmarks.harness.report import Report, Target, run_benchmark
from orchestrator.status import ComponentKind
from tests.chaos.killing import kill_everything, newest
from tests.e2e.mesh_process import MeshProcess
from tests.nodes.meshes import MODEL

REQUESTS, QUICK_REQUESTS = 10_000, 400
TOKENS = 8
ALL = "all processes"
PARTS = ("gateway", "engine", "shard", "shard", "controller", "batch runner")
FIRST, LAST = 0.05, 0.85
"""Parts are killed while that share of the lines has an answer; all of them at the end of it."""
STEP_TIMEOUT_S = 1800.0
ONLINE = 8
OTHER_GOAL = 5 / 120
"""Share of texts that may differ: where prefill and decode round differently."""
TITLES = {"gateway": "ray::ServeReplica", "batch runner": "ray::BatchRunner"}


def bodies(requests: int) -> list[dict[str, Any]]:
    """The demo's prompts, again and again."""
    lines = (DEMO / "prompts.jsonl").read_text().splitlines()
    prompts = [json.loads(line)["prompt"] for line in lines]
    return [body(prompts[number % len(prompts)]) for number in range(requests)]


def body(prompt: str) -> dict[str, Any]:
    return {"model": MODEL, "prompt": prompt, "max_tokens": TOKENS, "temperature": 0}


def undisturbed(url: str, prompts: Sequence[str]) -> dict[str, str]:
    """What the mesh answers to each prompt, online."""

    def ask(prompt: str) -> str:
        answer = httpx.post(f"{url}/v1/completions", json=body(prompt), timeout=120)
        text: str = answer.raise_for_status().json()["choices"][0]["text"]
        return text

    with ThreadPoolExecutor(ONLINE) as threads:
        return dict(zip(prompts, threads.map(ask, prompts), strict=True))


def moments(requests: int, seed: int) -> list[tuple[int, str]]:
    """(answers before it, part), in order; a seed gives the same ones every time."""
    chance = random.Random(seed)
    parts = chance.sample(PARTS, len(PARTS))
    shares = sorted(chance.uniform(FIRST, LAST) for _ in parts)
    found = [(int(share * requests), part) for share, part in zip(shares, parts, strict=True)]
    return [*found, (int(LAST * requests), ALL)]


def kill(mesh: MeshProcess, part: str, chance: random.Random) -> None:
    """SIGKILL one process of that kind."""
    if part == ALL:
        kill_everything(mesh)
    elif part in TITLES:
        newest(mesh, TITLES[part]).kill()
    else:
        kind = ComponentKind(part)
        alive = [c["pid"] for c in components(mesh).values() if c["kind"] == kind and c["pid"]]
        os.kill(chance.choice(sorted(alive)), signal.SIGKILL)


class Meshes:
    """The mesh, and the one that comes after it."""

    def __init__(self, state_dir: Path, stack: ExitStack) -> None:
        config = chaos_config()
        self._config = config | {
            "cluster": {"state_dir": str(state_dir)},
            "gateway": config["gateway"] | {"replicas": 2},
        }
        self._stack = stack

    def start(self) -> MeshProcess:
        mesh = self._stack.enter_context(MeshProcess(self._config))
        mesh.wait_for("ready at")
        return mesh


def run(requests: int, seed: int) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Rows of what was killed, and the figures of the job."""
    rows = []
    asked = bodies(requests)
    chance = random.Random(seed)
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        meshes = Meshes(Path(folder), stack)
        mesh = meshes.start()
        texts = undisturbed(mesh.url, sorted({one["prompt"] for one in asked}))
        began_s = time.monotonic()
        job = BatchJob(mesh.url, asked)
        for answers, part in moments(requests, seed):
            answered = job.wait(answers, STEP_TIMEOUT_S).answered
            kill(mesh, part, chance)
            killed_s = time.monotonic()
            if part == ALL:
                mesh = meshes.start()
                job.url = mesh.url
            job.wait(answered + 1, STEP_TIMEOUT_S)
            rows.append(
                {"killed": part, "answered": answered, "stall_s": time.monotonic() - killed_s}
            )
            print(rows[-1], flush=True)
        end = job.wait_ended(STEP_TIMEOUT_S)
        took_s = time.monotonic() - began_s
        figures = judged(asked, *job.lines(), texts)
        figures |= {"computed_again": float(end.again), "took_s": took_s}
        stop(mesh)
    return rows, figures


def stop(mesh: MeshProcess) -> None:
    mesh.signal(signal.SIGTERM)
    mesh.wait()


def judged(
    asked: Sequence[Mapping[str, Any]],
    output: Sequence[Mapping[str, Any]],
    errors: Sequence[Mapping[str, Any]],
    texts: Mapping[str, str],
) -> dict[str, float]:
    """How many lines there are of each kind."""
    came = Counter(int(line["custom_id"]) for line in [*output, *errors])
    other = sum(text_of(line) != texts[asked[int(line["custom_id"])]["prompt"]] for line in output)
    return {
        "requests": float(len(asked)),
        "answers": float(len(output)),
        "errors": float(len(errors)),
        "missing": float(sum(came[number] == 0 for number in range(len(asked)))),
        "doubled": float(sum(count > 1 for count in came.values())),
        "other": float(other),
    }


def measure(arguments: argparse.Namespace) -> Report:
    requests = arguments.requests or (QUICK_REQUESTS if arguments.quick else REQUESTS)
    rows, figures = run(requests, arguments.seed)
    notes = [
        f"{requests} requests of {TOKENS} tokens, demo model, seed {arguments.seed}",
        ", ".join(f"{name} {value:g}" for name, value in figures.items()),
    ]
    return Report("batch_crashes", rows, targets(figures), notes)


def targets(figures: Mapping[str, float]) -> list[Target]:
    other = figures["other"] / figures["requests"]
    return [
        Target("missing lines", figures["missing"], 0, "max", ""),
        Target("doubled lines", figures["doubled"], 0, "max", ""),
        Target("error lines", figures["errors"], 0, "max", ""),
        Target("share of other texts", other, OTHER_GOAL, "max", ""),
    ]


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--requests", type=int, help=f"how many (default: {REQUESTS})")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")


if __name__ == "__main__":
    run_benchmark(__doc__ or "", measure, options)
