"""From `expertmesh serve` to ready, and what the first requests take, with the demo model.

The first start finds an empty cache, as on a fresh clone after set-up; later ones find what the
first one kept. Once a mesh is ready the same short request goes to it again and again.

  ready_s          from the command to "ready at"
  first_ms         the first request, PROMPT and FEW tokens
  later_ms         the same, median of REQUESTS - 1
  answer_s         an answer of MANY tokens, median of ANSWERS
"""

import argparse
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml

from benchmarks.correctness import DEMO
from benchmarks.harness.report import Report, Target, run_benchmark

PROMPT = "And Jesus said unto them, "
FEW, MANY = 4, 48
REQUESTS, ANSWERS = 9, 3
FIRST_GOAL_S, LATER_GOAL_S = 40.0, 25.0
REQUEST_GOAL = 1.5
REALTIME = ("chrt", "--rr", "1")
"""In front of the command: before everything else on the machine."""


def demo_config(arguments: argparse.Namespace) -> dict[str, Any]:
    """The demo's own config at any free port, with what the options say of engines."""
    config: dict[str, Any] = yaml.safe_load((DEMO / "mesh.yaml").read_text())
    config["model"]["path"] = str(DEMO / "checkpoint")
    if arguments.eager is not None:
        config["engines"]["vllm"] = {"enforce_eager": arguments.eager}
    if arguments.threads is not None:
        config["engines"]["threads"] = arguments.threads
    return config | {"gateway": {"port": 0}}


@contextmanager
def serving(config: dict[str, Any], cache: Path, realtime: bool) -> Iterator[tuple[str, float]]:
    """A mesh that is ready: its address and the seconds that took. Stopped at the end."""
    (path := cache / "mesh.yaml").write_text(yaml.safe_dump(config))
    began_s = time.monotonic()
    with subprocess.Popen(
        [*(REALTIME if realtime else ()), sys.executable, "-m", "orchestrator.cli", "serve", path],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"XDG_CACHE_HOME": str(cache)},
    ) as process:
        assert process.stdout is not None
        try:
            yield ready_at(process.stdout), time.monotonic() - began_s
        finally:
            process.send_signal(signal.SIGTERM)
            process.stdout.read()


def ready_at(lines: Iterable[str]) -> str:
    """The address in the line that says so."""
    said = []
    for line in lines:
        said.append(line)
        if match := re.search(r"ready at (\S+)", line):
            return match[1]
    raise RuntimeError(f"the mesh did not start:\n{''.join(said)}")


def ask_ms(client: httpx.Client, tokens: int) -> float:
    began_s = time.monotonic()
    body = {"model": "demo", "prompt": PROMPT, "max_tokens": tokens, "temperature": 0}
    client.post("/v1/completions", json=body | {"ignore_eos": True}).raise_for_status()
    return 1e3 * (time.monotonic() - began_s)


def start(name: str, arguments: argparse.Namespace, cache: Path) -> dict[str, Any]:
    """One row: a mesh from start to stop."""
    with (
        serving(demo_config(arguments), cache, arguments.realtime) as (url, ready_s),
        httpx.Client(base_url=url, timeout=60, trust_env=False) as client,
    ):
        first_ms, *later_ms = [ask_ms(client, FEW) for _ in range(REQUESTS)]
        answers_ms = [ask_ms(client, MANY) for _ in range(ANSWERS)]
    return {
        "start": name,
        "ready_s": ready_s,
        "first_ms": first_ms,
        "later_ms": statistics.median(later_ms),
        "answer_s": statistics.median(answers_ms) / 1e3,
    }


def measure(arguments: argparse.Namespace) -> Report:
    with tempfile.TemporaryDirectory(prefix="xm") as cache:
        names = ["first", *(f"later {n + 1}" for n in range(arguments.later))]
        runs = [start(name, arguments, Path(cache)) for name in names]
    return Report("start", runs, [target for run in runs for target in targets(run)])


def targets(run: dict[str, Any]) -> list[Target]:
    goal_s = FIRST_GOAL_S if run["start"] == "first" else LATER_GOAL_S
    ratio = run["first_ms"] / run["later_ms"]
    return [
        Target(f"{run['start']}: ready", run["ready_s"], goal_s, "max", "s", timed=True),
        Target(
            f"{run['start']}: first request / later", ratio, REQUEST_GOAL, "max", "x", timed=True
        ),
    ]


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--later", type=int, default=2, help="starts with a warm cache")
    parser.add_argument("--threads", type=int, help="of the engine; default: what the mesh chooses")
    eager = parser.add_mutually_exclusive_group()
    eager.add_argument("--eager", action="store_true", default=None, help="engines do not compile")
    eager.add_argument("--compiled", dest="eager", action="store_false", help="engines compile")


if __name__ == "__main__":
    run_benchmark(__doc__ or "", measure, options)
