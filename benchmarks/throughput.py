"""Tokens per second with the experts in shards, against monolithic vLLM on the same cores.

The mid-size model of the test checkpoints (8 layers, 64 experts, top-8, 768/384, bf16), random
prompts, greedy. All engines stay loaded; rounds alternate between them, so each ratio is of runs a
second apart, and the median of the rounds' ratios counts. Monolithic vLLM runs eagerly and with
torch.compile, with huge pages as the mesh has and its OpenMP threads spinning (sleeping ones were
slower in every run); the better one in each workload is the reference. The targets are for what
`expertmesh serve` chooses on this machine where the config leaves it open; the rest is shown
beside it. --settings names what to measure, each a gigabyte or three of memory:

  whole, whole-eager    monolithic vLLM
  bound                 the same compiled, with each OpenMP thread bound to a core
  default               a mesh as `expertmesh serve` would start it
  eager, one-thread     the same but for that
  no-spin               the same with threads that sleep at once
  two-engines           two of them over the same shards
  all-here              a mesh's engine with the shards' kernel in its own process: no data plane
  half-here             half of each layer in the engine's process, half in one shard
"""

import argparse
import subprocess
import sys
import tempfile
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from actors.engine.compiling import starts_eagerly
from actors.process import SHORT_SPIN
from benchmarks.harness.engine_process import ALL_HERE, HALF_HERE
from benchmarks.harness.local_mesh import LocalMesh, ShardShape
from benchmarks.harness.priority import undisturbed
from benchmarks.harness.report import Report, Target, run_benchmark
from benchmarks.harness.timed_engine import TimedEngine, Timing, Workload
from orchestrator.config.schema import MeshConfig
from orchestrator.core_shares import available_cores, core_shares

GOALS = {Workload(16, 32, 64): 1.0, Workload(64, 32, 64): 1.2, Workload(4, 512, 16): 1.3}
"""What the mesh at its defaults should reach of monolithic vLLM at its best."""


WHOLE, WHOLE_EAGER, DEFAULT = "whole", "whole-eager", "default"
USUAL = [WHOLE, WHOLE_EAGER, DEFAULT, "eager"]
QUICK = [WHOLE, DEFAULT]


@dataclass(frozen=True, slots=True)
class Setting:
    """shards: threads of each, none for monolithic; engines: replicas that share the batch; here:
    see `engine_process`; variables: more environment."""

    name: str
    threads: int
    shards: tuple[int, ...] = ()
    engines: int = 1
    spinning: bool = False
    compiled: bool = False
    here: str = ""
    variables: dict[str, str] = field(default_factory=dict)


TWO_SHARDS = (1, 1)


def default_threads() -> int:
    """Of an engine beside two shards where the config says nothing."""
    pools = {"cpu": {"vendor": "cpu", "shards": len(TWO_SHARDS)}}
    config = MeshConfig.model_validate({"model": {"path": "/"}, "pools": pools})
    return core_shares(config).engine_threads


def settings() -> dict[str, Setting]:
    cores, threads = available_cores(), default_threads()
    bind = {"VLLM_CPU_OMP_THREADS_BIND": f"0-{cores - 1}"}
    here = replace(Setting("", cores, TWO_SHARDS), spinning=True, compiled=True, here=ALL_HERE)
    compiled = not starts_eagerly(on_cpu=True)
    default = Setting("", threads, TWO_SHARDS, compiled=compiled, variables=SHORT_SPIN)
    whole = Setting("", cores, spinning=True, compiled=True)
    found = {
        WHOLE: whole,
        WHOLE_EAGER: replace(whole, compiled=False),
        "bound": replace(whole, variables=bind),
        DEFAULT: default,
        "eager": replace(default, compiled=False),
        "one-thread": replace(default, threads=1),
        "no-spin": replace(default, variables={}),
        "spin2k": replace(default, threads=2, variables={"GOMP_SPINCOUNT": "2000"}),
        "spin200k": replace(default, threads=2, variables={"GOMP_SPINCOUNT": "200000"}),
        "two-engines": replace(default, engines=2),
        "all-here": here,
        "half-here": replace(default, threads=1, shards=(1,), here=HALF_HERE),
    }
    return {name: replace(setting, name=name) for name, setting in found.items()}


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


def row(
    name: str, workload: Workload, timings: list[Timing], reference: list[Timing]
) -> dict[str, Any]:
    """One line of the table; x: of the reference's speed, median and range of the rounds."""
    ratios = speeds(timings) / speeds(reference)
    first = np.concatenate([timing.first_s for timing in timings]) * 1e3
    gaps = np.concatenate([timing.gaps_s for timing in timings]) * 1e3
    return {
        "setting": name,
        "batch": workload.batch,
        "prompt": workload.prompt_tokens,
        "new": workload.new_tokens,
        "tokens_per_s": float(np.median([timing.tokens_per_s for timing in timings])),
        "x": float(np.median(ratios)),
        "from": float(ratios.min()),
        "to": float(ratios.max()),
        "ttft_p50_ms": float(np.percentile(first, 50)),
        "ttft_p99_ms": float(np.percentile(first, 99)),
        "itl_p50_ms": float(np.percentile(gaps, 50)),
        "itl_p99_ms": float(np.percentile(gaps, 99)),
    }


def measure(arguments: argparse.Namespace) -> Report:
    usual = QUICK if arguments.quick else USUAL
    names = arguments.settings.split(",") if arguments.settings else usual
    wanted = [settings()[name] for name in names]
    workloads = list(GOALS)[:1] if arguments.quick else list(GOALS)
    rounds = 2 if arguments.quick else arguments.rounds
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="xm")))
        model = arguments.model or make_model(folder / "model")
        meshes = Meshes(model, folder, stack)
        engines = {s.name: start_engines(s, meshes, stack) for s in wanted}
        runs, targets = [], []
        pids = meshes.pids + [e.pid for replicas in engines.values() for e in replicas]
        for workload in workloads:
            with undisturbed(pids, arguments.realtime):
                timings = measure_workload(engines, workload, rounds)
            best = fastest(timings, [s.name for s in wanted if not s.shards] or names[:1])
            runs += [row(name, workload, taken, timings[best]) for name, taken in timings.items()]
            if DEFAULT in timings and not settings()[best].shards:
                targets.append(target(best, workload, timings))
    return Report("throughput", runs, targets, [f"model {model}, {rounds} alternating rounds"])


class Meshes:
    """A mesh for each set of shards, started when it is first asked for."""

    def __init__(self, model: Path, folder: Path, stack: ExitStack) -> None:
        self.model, self.folder, self._stack = model, folder, stack
        self._meshes: dict[tuple[int, ...], LocalMesh] = {}

    def address(self, shards: tuple[int, ...]) -> str:
        if shards not in self._meshes:
            folder = self.folder / f"mesh{len(self._meshes)}"
            mesh = self._stack.enter_context(LocalMesh(self.model, folder))
            mesh.serve([ShardShape(threads=threads) for threads in shards])
            self._meshes[shards] = mesh
        return self._meshes[shards].address

    @property
    def pids(self) -> list[int]:
        return [pid for mesh in self._meshes.values() for pid in mesh.pids]


def start_engines(setting: Setting, meshes: Meshes, stack: ExitStack) -> list[TimedEngine]:
    """The engines of one setting, ready. What they compile is kept for settings of their kind:
    vLLM does not tell an engine of a mesh from a plain one with the same model."""
    kind = "mesh" if setting.shards else "whole"
    variables = setting.variables | {"VLLM_CACHE_ROOT": str(meshes.folder / f"compiled-{kind}")}
    address = meshes.address(setting.shards) if setting.shards else None
    return [
        stack.enter_context(
            closing(
                TimedEngine(
                    meshes.model, setting.threads, address, setting.spinning, setting.compiled,
                    setting.here, variables,
                )
            )
        ).wait_ready()
        for _ in range(setting.engines)
    ]  # fmt: skip


def make_model(folder: Path) -> Path:
    """The mid-size model, made in a process of its own: here 3 GB would stay taken."""
    command = [sys.executable, "-m", "tests.checkpoints.make", "mid_qwen3", str(folder)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return folder


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


def fastest(timings: dict[str, list[Timing]], names: list[str]) -> str:
    return max(names, key=lambda name: float(np.median(speeds(timings[name]))))


def speeds(timings: list[Timing]) -> np.ndarray:
    return np.array([timing.tokens_per_s for timing in timings])


def target(best: str, workload: Workload, timings: dict[str, list[Timing]]) -> Target:
    return Target(
        f"{DEFAULT} / {best}: {workload.batch} x {workload.prompt_tokens} in, "
        f"{workload.new_tokens} out",
        float(np.median(speeds(timings[DEFAULT]) / speeds(timings[best]))),
        GOALS[workload],
        "min",
        "x",
        timed=True,
    )


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=Path, help="checkpoint folder; made if not given")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--settings", default="", help=f"comma separated; default {','.join(USUAL)}"
    )


if __name__ == "__main__":
    run_benchmark(__doc__ or "", measure, options)
