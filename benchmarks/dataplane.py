"""What leaving the engine costs per MoE layer: time in the remote call minus the kernel's own time.

The kernel's time is what the slowest shard of that very call reports in its answer. "bare" is the
same without a dispatcher (`harness.bare_links`): frames made beforehand to the same shards, in
rounds that take turns with the measured ones. The targets are ratios to it.

Calls follow each other at once, which no engine's do; with `pause_us` the client computes for that
long before each call, bare ones too, as an engine does with attention: by then who waited for the
last call has gone to sleep.

Cases vary one thing at a time around 2 shards, 16 rows x 2048, top-8 of 64 experts; each is
measured in several rounds, and p50 is the median of the best round (other work on the machine only
ever adds).
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from actors.dispatch.dispatcher import Dispatcher
from actors.dispatch.mesh_view import MeshView
from actors.dispatch.view_source import FixedView
from benchmarks.harness.bare_links import BareClient, frames_of
from benchmarks.harness.bare_shards import SECRET, BareMesh, bare_shards
from benchmarks.harness.child_process import environment
from benchmarks.harness.priority import undisturbed
from benchmarks.harness.report import Report, Target, run_benchmark

TOP_K = 8
WARM_CALLS = 20
ROUND_S = 0.3
BASE = BareMesh()
BASE_ROWS = 16
NAMES = {"unix": "shared memory", "tcp": "TCP loopback"}
GOAL_RATIO = 1.5
"""Overhead over the bare round trip: splitting, writing and adding up may take half of it."""
REACHED = {("unix", False): 1.5, ("unix", True): 2.0, ("tcp", False): 1.9, ("tcp", True): 2.0}
"""By transport and whether calls follow each other at once: what is reached where the goal is
missed; docs/performance.md says why."""
PAUSE_US = 300.0
"""Less than a layer's attention takes in the throughput benchmark, longer than waits spin."""
LONG_SPIN_US = 5000.0
"""Longer than the native kernel's calls: for machines with a core for every process."""


Batch = tuple[int, float]
"""Rows, and the pause before each call in microseconds."""

Timed = tuple[int, int, int, int]
"""Start, end of the sending and end of a call, and the kernel's time, in ns."""


def measure_rows(
    dispatcher: Dispatcher,
    bare: BareClient,
    mesh: BareMesh,
    view: MeshView,
    rows: int,
    rounds: int,
    round_s: float,
    pause_us: float = 0.0,
) -> dict[str, float]:
    """p50 of the best round, and p99 over all, of one batch size; microseconds. Rounds of the
    dispatcher and of the bare client, which sends the same frames, take turns."""
    hidden, num_experts = mesh.hidden, view.epoch.num_experts
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, hidden, generator=generator).bfloat16()
    scores = torch.rand(rows, num_experts, generator=generator)
    ids = scores.topk(TOP_K).indices.to(torch.int32)
    weights = torch.rand(rows, TOP_K, generator=generator)
    frames = frames_of(view, x, weights, ids)

    def call() -> Timed:
        start_ns = after_pause_ns(pause_us)
        sent = dispatcher.send(0, x, weights, ids)
        away_ns = time.perf_counter_ns()
        dispatcher.wait(sent)
        return start_ns, away_ns, time.perf_counter_ns(), 1000 * sent.compute_us

    def bare_call() -> Timed:
        start_ns = after_pause_ns(pause_us)
        compute_us = bare.call(frames)
        return start_ns, start_ns, time.perf_counter_ns(), 1000 * compute_us

    taken: dict[str, list[Any]] = {"dispatcher": [], "bare": []}
    for _ in range(rounds):
        taken["bare"].append(one_round(bare_call, round_s))
        taken["dispatcher"].append(one_round(call, round_s))
    over = [end - start - kernel for start, _, end, kernel in taken["dispatcher"]]
    best = min(range(rounds), key=lambda i: float(np.median(over[i])))
    start, away, _, kernel = taken["dispatcher"][best]
    bare_us = min(float(np.median(end - start - kernel)) for start, _, end, kernel in taken["bare"])
    return {
        "p50_us": float(np.median(over[best])),
        "p99_us": float(np.percentile(np.concatenate(over), 99)),
        "send_p50_us": float(np.median(away - start)),
        "kernel_p50_us": float(np.median(kernel)),
        "bare_p50_us": bare_us,
        "ratio": float(np.median(over[best])) / bare_us,
    }


def after_pause_ns(pause_us: float) -> int:
    """The time after so long of computing."""
    end_ns = time.perf_counter_ns() + int(1000 * pause_us)
    while (now_ns := time.perf_counter_ns()) < end_ns:
        pass
    return now_ns


def one_round(call: Callable[[], Timed], round_s: float) -> np.ndarray:
    """Calls for so long, after some that are not counted: [4, calls] microseconds."""
    for _ in range(WARM_CALLS):
        call()
    end_s, times = time.perf_counter() + round_s, []
    while time.perf_counter() < end_s or len(times) < WARM_CALLS:
        times.append(call())
    return np.array(times).T / 1000


def measure_mesh(
    mesh: BareMesh, batches: list[Batch], folder: Path, arguments: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    with bare_shards(mesh, folder) as (view, processes):
        pids = [os.getpid(), *(process.pid for process in processes)]
        with environment(mesh.environment()):
            dispatcher, *idle = [Dispatcher(FixedView(view), SECRET) for _ in range(mesh.clients)]
            bare = BareClient(view, SECRET)
        for other in idle:  # a call opens the links
            measure_rows(other, bare, mesh, view, BASE_ROWS, 1, 0.0)
        for rows, pause_us in batches:
            case = {k: v for k, v in asdict(mesh).items() if k not in ("intermediate",)}
            with undisturbed(pids, arguments.realtime):
                timed = measure_rows(
                    dispatcher, bare, mesh, view, rows, arguments.rounds, ROUND_S, pause_us
                )
            yield case | {"rows": rows, "pause_us": pause_us} | timed
        for each in (dispatcher, *idle, bare):
            each.close()


def cases(quick: bool) -> list[tuple[BareMesh, list[Batch]]]:
    """Meshes and the batches to measure on each."""
    both = [replace(BASE, transport=transport) for transport in NAMES]
    native = [replace(mesh, kernel="native") for mesh in both]
    paced = [(mesh, [(BASE_ROWS, PAUSE_US)]) for mesh in both]
    if quick:
        return paced + [(mesh, [(BASE_ROWS, 0.0)]) for mesh in both + native]
    return paced + [(mesh, [(rows, 0.0) for rows in batches]) for mesh, batches in sweeps(both)]


def sweeps(both: list[BareMesh]) -> list[tuple[BareMesh, list[int]]]:
    """Meshes and rows of calls that follow each other at once. both: one for each transport."""
    native = [replace(mesh, kernel="native") for mesh in both]
    sweep = [(mesh, [1, 4, BASE_ROWS, 64, 256, 1024]) for mesh in both]
    for mesh in both:
        sweep += [(replace(mesh, shards=shards), [BASE_ROWS]) for shards in (1, 4)]
        sweep += [(replace(mesh, hidden=hidden), [BASE_ROWS]) for hidden in (512, 7168)]
    sweep += [(replace(BASE, num_experts=experts), [BASE_ROWS]) for experts in (16, 256)]
    sweep += [(replace(BASE, replicated=16), [BASE_ROWS])]
    sweep += [(replace(BASE, clients=clients), [BASE_ROWS]) for clients in (4, 16)]
    sweep += [(replace(both[1], rows_between_nodes="fp8"), [BASE_ROWS, 256, 1024])]
    sweep += [(mesh, [1, BASE_ROWS, 64]) for mesh in native]
    sweep += [(replace(mesh, spin_us=LONG_SPIN_US), [BASE_ROWS]) for mesh in native]
    alone = replace(native[0], shards=1)
    return sweep + [(replace(alone, spin_us=us), [BASE_ROWS]) for us in (50, LONG_SPIN_US)]


def slope(runs: list[dict[str, Any]], name: str, wanted: dict[str, Any]) -> dict[str, Any] | None:
    """How overhead grows with `name`, the rest as in `wanted`: exponent of a power law's fit."""
    points = [
        (run[name], run["p50_us"])
        for run in runs
        if all(run[k] == v for k, v in wanted.items() if k != name)
    ]
    if len(points) < 3:
        return None
    x, y = np.log(np.array(sorted(points))).T
    line = np.polynomial.Polynomial.fit(x, y, 1).convert().coef
    smallest, largest = min(points), max(points)
    return {
        "grows with": name,
        "transport": NAMES[wanted["transport"]],
        "from": f"{smallest[0]}: {smallest[1]:.0f} us",
        "to": f"{largest[0]}: {largest[1]:.0f} us",
        "exponent": float(line[1]),
    }


def is_base(run: dict[str, Any]) -> bool:
    base = asdict(BASE) | {"rows": BASE_ROWS}
    return all(run[k] == v for k, v in base.items() if k in run and k != "transport")


def target(run: dict[str, Any]) -> Target:
    back_to_back = not run["pause_us"]
    return Target(
        f"overhead over the bare round trip, {NAMES[run['transport']]}, "
        f"{'back to back' if back_to_back else 'with pauses'}",
        run["ratio"],
        GOAL_RATIO,
        "max",
        "",
        timed=True,
        reached=REACHED[run["transport"], back_to_back],
    )


def measure(arguments: argparse.Namespace) -> Report:
    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="xm") as folder:
        for mesh, batches in cases(arguments.quick):
            for run in measure_mesh(mesh, batches, Path(folder), arguments):
                print(".", end="", flush=True)
                runs.append(run)
    targets = [target(run) for run in runs if is_base(run)]
    slopes = []
    for transport in NAMES:
        wanted = {k: v for k, v in asdict(BASE).items() if k != "intermediate"}
        wanted |= {"rows": BASE_ROWS, "transport": transport, "pause_us": 0.0}
        for name in ("rows", "shards", "hidden", "num_experts", "clients"):
            slopes.append(slope(runs, name, wanted))
    return Report("dataplane", runs + [s for s in slopes if s], targets)


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=5, help="rounds of 0.3 s per case")


if __name__ == "__main__":
    run_benchmark(__doc__ or "", measure, options)
