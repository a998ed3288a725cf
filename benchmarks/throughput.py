"""Tokens per second with the experts in shards, against monolithic vLLM on the same cores.

The mid-size model of the test checkpoints (8 layers, 64 experts, top-8, 768/384, bf16), random
prompts, greedy. All engines stay loaded; rounds alternate between them, so each ratio is of runs a
second apart, and the median of the rounds' ratios counts. Monolithic vLLM runs eagerly and with
torch.compile, its OpenMP threads spinning (sleeping ones were slower in every run); the better one
in each workload is the reference.
"""

import argparse
import tempfile
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness.local_mesh import LocalMesh, ShardShape
from benchmarks.harness.priority import undisturbed
from benchmarks.harness.report import Report, Target, run_benchmark
from benchmarks.harness.timed_engine import TimedEngine, Timing, Workload

DECODE = [Workload(16, 32, 64), Workload(64, 32, 64)]
PREFILL = [Workload(4, 512, 16)]
GOAL = 1.0


@dataclass(frozen=True, slots=True)
class Setting:
    """shards: threads of each, none for monolithic; engines: replicas that share the batch."""

    name: str
    threads: int
    shards: tuple[int, ...] = ()
    engines: int = 1
    spinning: bool = False
    compiled: bool = False


MONOLITHIC = [
    Setting("monolithic, threads spin", 2, spinning=True),
    Setting("monolithic, compiled, threads spin", 2, spinning=True, compiled=True),
]
MESH = Setting("engine 2 threads, 2 shards x 1", 2, (1, 1))
ONE_THREAD = Setting("engine 1 thread, 2 shards x 1", 1, (1, 1))
COMPILED = [
    Setting("engine compiled, 2 threads, 2 shards x 1", 2, (1, 1), compiled=True),
    Setting("engine compiled, 1 thread, 2 shards x 1", 1, (1, 1), compiled=True),
]
TWO_ENGINES = Setting("2 engines x 1 thread, 2 shards x 1", 1, (1, 1), engines=2)


def generate(engines: list[TimedEngine], workload: Workload, seed: int) -> Timing:
    """The workload, shared evenly by the engines, as one timing."""
    part = Workload(workload.batch // len(engines), workload.prompt_tokens, workload.new_tokens)
    for number, engine in enumerate(engines):
        engine.start(part, seed + 1000 * number)
    timings = [engine.finish() for engine in engines]
    return Timing(
        min(timing.start_s for timing in timings),
        max(timing.end_s for timing in timings),
        [x for timing in timings for x in timing.first_s],
        [x for timing in timings for x in timing.gaps_s],
        [x for timing in timings for x in timing.tokens],
    )


def row(name: str, workload: Workload, timings: list[Timing]) -> dict[str, Any]:
    first = np.concatenate([timing.first_s for timing in timings]) * 1e3
    gaps = np.concatenate([timing.gaps_s for timing in timings]) * 1e3
    return {
        "setting": name,
        "batch": workload.batch,
        "prompt": workload.prompt_tokens,
        "new": workload.new_tokens,
        "tokens_per_s": float(np.median([timing.tokens_per_s for timing in timings])),
        "ttft_p50_ms": float(np.percentile(first, 50)),
        "ttft_p99_ms": float(np.percentile(first, 99)),
        "itl_p50_ms": float(np.percentile(gaps, 50)),
        "itl_p99_ms": float(np.percentile(gaps, 99)),
    }


def measure(arguments: argparse.Namespace) -> Report:
    meshes = [MESH] if arguments.quick else [MESH, ONE_THREAD, *COMPILED, TWO_ENGINES]
    whole = MONOLITHIC[:1] if arguments.quick else MONOLITHIC
    workloads = DECODE[:1] if arguments.quick else DECODE + PREFILL
    rounds = 2 if arguments.quick else arguments.rounds
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="xm")))
        model = arguments.model or make_model(folder / "model")
        mesh = stack.enter_context(LocalMesh(model, folder / "mesh"))
        mesh.serve([ShardShape(threads=threads) for threads in MESH.shards])
        engines: dict[str, list[TimedEngine]] = {}
        for setting in whole + meshes:
            address = mesh.address if setting.shards else None
            engines[setting.name] = [
                stack.enter_context(
                    closing(
                        TimedEngine(
                            model, setting.threads, address, setting.spinning, setting.compiled
                        )
                    )
                ).wait_ready()
                for _ in range(setting.engines)
            ]
        runs, targets = [], []
        pids = mesh.pids + [e.pid for replicas in engines.values() for e in replicas]
        for workload in workloads:
            with undisturbed(pids, arguments.realtime):
                timings = measure_workload(engines, workload, rounds)
            runs += [row(name, workload, taken) for name, taken in timings.items()]
            targets += compare(workload, timings, [s.name for s in whole], [m.name for m in meshes])
    return Report("throughput", runs, targets, [f"model {model}, {rounds} alternating rounds"])


def make_model(folder: Path) -> Path:
    from tests.checkpoints.make import make_checkpoint

    return make_checkpoint("mid_qwen3", folder)


def measure_workload(
    engines: dict[str, list[TimedEngine]], workload: Workload, rounds: int
) -> dict[str, list[Timing]]:
    for replicas in engines.values():  # the first run sets up kernels and buffers
        generate(replicas, Workload(workload.batch, workload.prompt_tokens, 2), seed=99)
    timings: dict[str, list[Timing]] = {name: [] for name in engines}
    for seed in range(rounds):
        for name, replicas in engines.items():
            timings[name].append(generate(replicas, workload, seed))
            print(".", end="", flush=True)
    return timings


def compare(
    workload: Workload, timings: dict[str, list[Timing]], whole: list[str], meshes: list[str]
) -> list[Target]:
    speed = {name: np.array([t.tokens_per_s for t in taken]) for name, taken in timings.items()}
    best = max(whole, key=lambda name: float(np.median(speed[name])))
    return [
        Target(
            f"{name} / {best}: {workload.batch} x {workload.prompt_tokens} in, "
            f"{workload.new_tokens} out",
            float(np.median(speed[name] / speed[best])),
            GOAL,
            "min",
            "x",
        )
        for name in meshes
    ]


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=Path, help="checkpoint folder; made if not given")
    parser.add_argument("--rounds", type=int, default=5)


if __name__ == "__main__":
    run_benchmark(__doc__ or "", measure, options)
