"""Memory of all serving processes against monolithic vLLM, and what the engine alone saves.

Proportional set sizes (pages shared by processes counted once) after a run, which has touched what
serving touches. A shard is a Python process with torch, so every one adds a constant: it is
measured on a shard without experts that runs beside the others. Of the two that serve, one holds
three quarters of the experts and one a quarter: what the first takes more should be their weights,
once, and nothing else that grows with them. That is measured when they are loaded, because the
first also computes three quarters of the rows; what serving adds to it is a figure by itself. Where
the constant comes from, for one shard: its memory by kind, and how a process grows import by import
(anonymous memory is what it shares with nobody).
"""

from actors.lean_imports import LEAN_IMPORTS  # before torch, also in the shards started from here

# isort: split
import argparse
import os
import subprocess
import sys
import tempfile
from collections import Counter
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from actors.experts.families import read_expert_spec
from actors.process import thread_environment
from benchmarks.harness.local_mesh import LocalMesh, ShardShape
from benchmarks.harness.report import Report, Target, run_benchmark
from benchmarks.harness.timed_engine import TimedEngine, Workload, proportional_bytes
from benchmarks.throughput import make_model

MB = 1e6
PLAIN_GOAL, PLAIN_REACHED = 1.2, 1.27
CONSTANT_GOAL_MB, CONSTANT_REACHED_MB = 230.0, 250.0
WEIGHTS_GOAL = 1.03
SERVING_GOAL_MB = 50.0
"""In the shard with three quarters of the rows: scratch of kernels, 34 MB for 3,072 assignments at
once, links and machine code; no copy of the weights of the model measured here."""
LEAST_SHRINK, SHRINK_REACHED = 0.95, 0.83
"""Pages of libraries count by how many processes share them. While something else that uses torch
runs for a part of the benchmark, sizes are off by about 130 MB: hence what counts as reached."""
WORKLOAD = Workload(16, 32, 16)

# Kinds of mappings by what their path contains; the first that fits counts.
CHECKPOINT, LINKS, OWN = "checkpoint files", "links to clients", "heap and Python objects"
KINDS = (
    (".safetensors", CHECKPOINT),
    ("memfd:", LINKS),
    ("/torch/", "torch's libraries"),
    ("/llvmlite/", "LLVM, of numba"),
    ("/vllm/", "the kernels' library"),
    ("/", "Python and other libraries"),
    ("[anon]", OWN),
    ("[heap]", OWN),
    ("", "stacks and the rest"),
)

SIZES = {"VmHWM": "peak", "VmRSS": "resident", "RssAnon": "anonymous"}  # as in /proc/PID/status
IMPORTS = ("sys", "numpy", "actors.lean_imports", "actors.shard.shard")
IMPORT_ALL = """
import importlib, sys
from pathlib import Path
for name in sys.argv[1:]:
    importlib.import_module(name)
    print("after", "Python" if name == "sys" else f"import {name}")
    print(Path("/proc/self/status").read_text())
"""


@dataclass(frozen=True, slots=True)
class Sizes:
    """Megabytes. whole: monolithic vLLM; engine: without experts; large, small, empty: shards with
    three quarters of the experts, with a quarter and without any; loaded_large, loaded_small: the
    first two before they served; experts: weights of all."""

    whole: float
    engine: float
    large: float
    small: float
    empty: float
    loaded_large: float
    loaded_small: float
    experts: float

    @property
    def mesh(self) -> float:
        """Engine and the shards that serve."""
        return self.engine + self.large + self.small

    @property
    def serving(self) -> float:
        """What serving adds to the shard that gets more rows."""
        return self.large - self.loaded_large


def targets_of(sizes: Sizes) -> list[Target]:
    """What each part of the memory should come to."""
    return [
        Target(
            "a shard without experts", sizes.empty, CONSTANT_GOAL_MB, "max", "MB",
            reached=CONSTANT_REACHED_MB,
        ),
        Target(
            "what further experts take in a shard / their size",
            (sizes.loaded_large - sizes.loaded_small) / (sizes.experts / 2),
            WEIGHTS_GOAL, "max", "x",
        ),
        Target("serving calls, in a shard", sizes.serving, SERVING_GOAL_MB, "max", "MB"),
        Target(
            "engine and 2 shards / monolithic vLLM",
            sizes.mesh / sizes.whole, PLAIN_GOAL, "max", "x", reached=PLAIN_REACHED,
        ),
        Target(
            "what the engine shrinks by / the experts' size",
            (sizes.whole - sizes.engine) / sizes.experts, LEAST_SHRINK, "min", "x",
            reached=SHRINK_REACHED,
        ),
    ]  # fmt: skip


def measure(arguments: argparse.Namespace) -> Report:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="xm")))
        model = arguments.model or make_model(folder / "model")
        spec = read_expert_spec(model)
        experts_bytes = spec.bytes_per_expert * spec.num_experts * len(spec.layers)
        with closing(TimedEngine(model, 1, None, spinning=False)) as engine:
            engine.wait_ready().run(WORKLOAD)
            whole = proportional_bytes([engine.pid]) / MB
        mesh = stack.enter_context(LocalMesh(model, folder / "mesh"))
        # Room for their own experts only, without replicas.
        quarter = spec.num_experts // 4 * len(spec.layers) * spec.bytes_per_expert
        rooms = (experts_bytes - quarter, quarter)
        mesh.serve([ShardShape(memory_bytes=room) for room in rooms])
        empty = mesh.start_empty_shard()
        loaded = [proportional_bytes([pid]) / MB for pid in mesh.pids]
        engine = stack.enter_context(closing(TimedEngine(model, 1, mesh.address, spinning=False)))
        engine.wait_ready().run(WORKLOAD)
        sizes = Sizes(
            whole,
            proportional_bytes([engine.pid]) / MB,
            *(proportional_bytes([pid]) / MB for pid in (*mesh.pids, empty)),
            *loaded,
            experts_bytes / MB,
        )
        one = shard_by_kind(empty) + growth(mesh.pids[0])
    runs = [
        {"processes": "monolithic vLLM", "megabytes": sizes.whole},
        {"processes": "engine without experts", "megabytes": sizes.engine},
        {"processes": "a shard with 3/4 of the experts", "megabytes": sizes.large},
        {"processes": "the same before it served", "megabytes": sizes.loaded_large},
        {"processes": "a shard with 1/4 of the experts", "megabytes": sizes.small},
        {"processes": "the same before it served", "megabytes": sizes.loaded_small},
        {"processes": "the experts' weights", "megabytes": sizes.experts},
        {"processes": "a shard without experts", "megabytes": sizes.empty},
        {"processes": "engine and 2 shards", "megabytes": sizes.mesh},
    ]
    return Report("memory", runs + one, targets_of(sizes))


def memory_by_kind(pid: int) -> Counter[str]:
    """Proportional bytes of a process's mappings, by the kinds of `KINDS`."""
    kinds: Counter[str] = Counter()
    for region in psutil.Process(pid).memory_maps():
        kind = next(kind for part, kind in KINDS if part in region.path)
        kinds[kind] += region.pss
    return kinds


def status_sizes(pid: int) -> dict[str, int]:
    """Bytes by the values of `SIZES`."""
    return _sizes(Path(f"/proc/{pid}/status").read_text())


def _sizes(status: str) -> dict[str, int]:
    fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    return {name: int(fields[field].split()[0]) * 1024 for field, name in SIZES.items()}


def shard_by_kind(pid: int) -> list[dict[str, Any]]:
    """One row for each kind of memory of a shard without experts."""
    kinds = memory_by_kind(pid)
    return [
        {"of a shard without experts": kind, "megabytes": kinds[kind] / MB}
        for kind in dict.fromkeys(kind for _, kind in KINDS)
    ]


def growth(pid: int) -> list[dict[str, Any]]:
    """A fresh process import by import, then shard `pid` as it is."""
    said = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL, *IMPORTS],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | thread_environment(1) | LEAN_IMPORTS,
    ).stdout
    steps = dict(text.split("\n", 1) for text in said.split("after ")[1:])
    sizes = {step: _sizes(status) for step, status in steps.items()}
    sizes["load and serve"] = status_sizes(pid)
    return [
        {"a shard after": step} | {f"{name} MB": size / MB for name, size in taken.items()}
        for step, taken in sizes.items()
    ]


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=Path, help="checkpoint folder; made if not given")


if __name__ == "__main__":
    run_benchmark(__doc__ or "", measure, options)
