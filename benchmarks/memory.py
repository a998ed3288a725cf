"""Memory of all serving processes against monolithic vLLM, and what the engine alone saves.

Proportional set sizes (pages shared by processes counted once) after a run, which has touched what
serving touches. A shard is a Python process with torch, so every one adds a constant, measured here
as a shard's memory without its experts. Where it comes from, for one shard: its memory by kind, and
how a process grows import by import (anonymous memory is what it shares with nobody).
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections import Counter
from contextlib import ExitStack, closing
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
GOAL = 1.15
LEAST_SHRINK = 0.95
SHARDS = 2
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
IMPORTS = ("sys", "numpy", "torch", "numba", "actors.shard")
IMPORT_ALL = """
import importlib, sys
from pathlib import Path
for name in sys.argv[1:]:
    importlib.import_module(name)
    print("after", "Python" if name == "sys" else f"import {name}")
    print(Path("/proc/self/status").read_text())
"""


def measure(arguments: argparse.Namespace) -> Report:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="xm")))
        model = arguments.model or make_model(folder / "model")
        spec = read_expert_spec(model)
        experts = spec.bytes_per_expert * spec.num_experts * len(spec.layers) / MB
        with closing(TimedEngine(model, 1, None, spinning=False)) as engine:
            engine.wait_ready().run(WORKLOAD)
            whole = proportional_bytes([engine.pid]) / MB
        mesh = stack.enter_context(LocalMesh(model, folder / "mesh"))
        # Room for its half of the experts only: replicas would be counted as constant.
        room = -(-spec.num_experts // SHARDS) * len(spec.layers) * spec.bytes_per_expert
        mesh.serve([ShardShape(memory_bytes=room)] * SHARDS)
        engine = stack.enter_context(closing(TimedEngine(model, 1, mesh.address, spinning=False)))
        engine.wait_ready().run(WORKLOAD)
        alone = proportional_bytes([engine.pid]) / MB
        shards = proportional_bytes(mesh.pids) / MB
        one = shard_by_kind(mesh.pids[0], experts / SHARDS) + growth(mesh.pids[0])
    constant = (shards - experts) / SHARDS
    total = alone + shards
    runs = [
        {"processes": "monolithic vLLM", "megabytes": whole},
        {"processes": "engine without experts", "megabytes": alone},
        {"processes": f"{SHARDS} shards", "megabytes": shards},
        {"processes": "the experts' weights", "megabytes": experts},
        {"processes": "a shard beyond its weights", "megabytes": constant},
        {"processes": "engine and shards", "megabytes": total},
    ]
    targets = [
        Target(
            "engine and shards without their constants / monolithic",
            (total - SHARDS * constant) / whole, GOAL, "max", "x",
        ),
        Target(
            "what the engine shrinks by / the experts' size",
            (whole - alone) / experts, LEAST_SHRINK, "min", "x",
        ),
    ]  # fmt: skip
    return Report("memory", runs + one, targets)


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


def shard_by_kind(pid: int, weights_mb: float) -> list[dict[str, Any]]:
    """One row for each kind; weights are taken out of the anonymous memory they lie in."""
    kinds = memory_by_kind(pid)
    sizes = {"its experts' weights": weights_mb} | {
        kind: kinds[kind] / MB for kind in dict.fromkeys(kind for _, kind in KINDS)
    }
    sizes[OWN] -= weights_mb
    return [{"of a shard": kind, "megabytes": size} for kind, size in sizes.items()]


def growth(pid: int) -> list[dict[str, Any]]:
    """A fresh process import by import, then shard `pid` as it is."""
    said = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL, *IMPORTS],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | thread_environment(1),
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
