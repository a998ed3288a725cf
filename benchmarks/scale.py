"""Clusters on paper: what `expertmesh plan --cluster` says of the shipped ones, side by side.

Nothing is measured: figures follow from claims and assumptions, which that command lists.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks.harness.report import Report, run_benchmark
from orchestrator.scale.cluster_file import read_cluster
from orchestrator.scale.estimate import Estimate, estimate
from orchestrator.scale.models import MODELS, V4_FLASH

CLUSTERS = Path(__file__).parents[1] / "examples" / "clusters"

Found = dict[tuple[str, str], Estimate]
"""(cluster, model) -> what it would do."""


def estimates(quick: bool) -> Found:
    found = {}
    for file in sorted(CLUSTERS.glob("*.yaml")):
        cluster = read_cluster(file)
        for model in (V4_FLASH,) if quick else MODELS.values():
            found[cluster.name, model.name] = estimate(cluster, model)
            print(".", end="", flush=True)
    return found


def row_of(cluster: str, model: str, found: Estimate) -> dict[str, Any]:
    return {
        "cluster": cluster,
        "model": model,
        "balancedness": found.balancedness,
        "bound": found.bound,
        "kernels_us": found.compute_s * 1e6,
        "network_us": found.network_s * 1e6,
        "step_gb": found.network_bytes / 1e9,
        "tokens_per_s": found.tokens_per_s,
        "limit": found.limit,
        "staged_us": found.staged.total_s * 1e6,
        "ipc_us": found.ipc.total_s * 1e6,
    }


def measure(arguments: argparse.Namespace) -> Report:
    found = estimates(arguments.quick)
    if arguments.plots:
        from benchmarks.scale_plots import draw_layers

        draw_layers(found, arguments.plots / "scale-layers.png")
    runs = [row_of(*names, result) for names, result in found.items()]
    return Report("scale", runs, [], ["on paper: nothing of this was measured"])


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--plots", type=Path, help="write the plot of layers' times here")


if __name__ == "__main__":
    run_benchmark(__doc__ or "", measure, options)
