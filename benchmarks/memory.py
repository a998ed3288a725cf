"""Memory of all serving processes against monolithic vLLM, and what the engine alone saves.

Proportional set sizes (pages shared by processes counted once) after a run, which has touched what
serving touches. A shard is a Python process with torch, so every one adds a constant, measured here
as a shard's memory without its experts.
"""

import argparse
import tempfile
from contextlib import ExitStack, closing
from pathlib import Path

from actors.experts.families import read_expert_spec
from benchmarks.harness.local_mesh import LocalMesh, ShardShape
from benchmarks.harness.report import Report, Target, run_benchmark
from benchmarks.harness.timed_engine import TimedEngine, Workload, proportional_bytes
from benchmarks.throughput import make_model

MB = 1e6
GOAL = 1.15
LEAST_SHRINK = 0.95
SHARDS = 2
WORKLOAD = Workload(16, 32, 16)


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
    return Report("memory", runs, targets)


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=Path, help="checkpoint folder; made if not given")


if __name__ == "__main__":
    run_benchmark(__doc__ or "", measure, options)
