"""What a rebalance costs the streams and gives the shards, when the traffic changes by itself.

The demo model on three equal shards with room for each expert and a sixth more. Eight clients
stream one kind of text (English, code, Chinese poems), then another; the controller sees the load
and moves copies by itself. All from the outside: streams, expert load, events.

  even_before, even_after  balancedness of the shards' work (mean over max, mean of the layers) in
                           the last seconds of the traffic before, and of this one
  even_start               the same right after the traffic changed
  back_s                   from the change of traffic to the end of the first rebalance after it;
                           nan: the controller saw nothing to gain
  moves                    changes of the placement that ended in this traffic
  itl_p99_ms               time between two pieces while copies moved; quiet_p99_ms: otherwise

With `--drawn`, in place of texts: the planner's own loads (Zipf, log-normal), given to six shards
by a dispatcher without an engine; half of the experts change places in popularity after a while.

  even_turned              balancedness as served in the first seconds after that
  even_after               in the last seconds
  table                    what dispatchers make of such calls on the planner's own placement
  back_s                   until it is 0.95 of the table
  weight                   least part of its speed that a shard was counted on with meanwhile; it
                           is to get that part of the others' work
"""

import argparse
import json
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.correctness import DEMO
from benchmarks.harness.drawn_load import ROWS
from benchmarks.harness.drawn_run import EVEN_GOAL as DRAWN_GOAL
from benchmarks.harness.drawn_run import run_drawn
from benchmarks.harness.report import Report, Target, run_benchmark
from benchmarks.harness.shard_work import ShardWork
from tests.e2e.mesh_process import MeshProcess
from tests.nodes.meshes import MODEL
from tests.nodes.streams import Stream

STREAMS = 8
TOKENS = 100
PHASE_S, QUICK_PHASE_S = 40.0, 15.0
LOOK_S = 1.0
WINDOW_S = 6.0
DOMAINS = ("en", "py", "zh", "en")
ITL_GOAL = 1.1
BACK_GOAL_S = 15.0
EVEN_GOAL = 0.95
"""Of what the traffic before had in the end."""
THREE = {name: {"vendor": "cpu", "memory": "5MiB", "speed": 1.0} for name in "abc"}
DRAWN_SHARDS = 6
SIX = {"a": {"vendor": "cpu", "shards": DRAWN_SHARDS, "memory": "2.5MiB", "speed": 1.0}}
"""With so many a shard that holds what has become hot cannot give enough of it to the others."""


@contextmanager
def traffic(url: str, prompts: Sequence[str]) -> Iterator[list[Stream]]:
    """Streams without a pause; the list grows as they end."""
    ended: list[Stream] = []
    stop = threading.Event()

    def ask(first: int) -> None:
        number = first
        while not stop.is_set():
            stream = Stream(prompts[number % len(prompts)])
            stream.run(url, TOKENS)
            ended.append(stream)
            number += STREAMS

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(STREAMS)]
    for thread in threads:
        thread.start()
    try:
        yield ended
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def demo_prompts() -> dict[str, list[str]]:
    """By kind of text."""
    found: dict[str, list[str]] = defaultdict(list)
    for line in (Path(DEMO) / "prompts.jsonl").read_text().splitlines():
        row = json.loads(line)
        found[row["domain"]].append(row["prompt"])
    return found


@contextmanager
def small_mesh(pools: Mapping[str, Any] = THREE) -> Iterator[MeshProcess]:
    config = {
        "mesh": {"name": "rebalance"},
        "model": {"path": str(DEMO / "checkpoint"), "served_name": MODEL},
        "engines": {"vllm": {"max_num_seqs": 16, "max_num_batched_tokens": 512}},
        "pools": dict(pools),
        "controller": {"rebalance_pause_s": 5},
        "gateway": {"port": 0},
    }
    with MeshProcess(config) as mesh:
        mesh.wait_for("ready at")
        yield mesh


def moves(events: Sequence[dict[str, Any]]) -> list[tuple[float, float]]:
    """(begin, end) of each transaction that was done, on the wall clock."""
    by_id: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for event in events:
        if event["transaction"]:
            by_id[event["transaction"]].append(event)
    return [
        (lines[0]["wall_s"], lines[-1]["wall_s"])
        for lines in by_id.values()
        if lines[-1]["step"] == "done"
    ]


def gaps(streams: Sequence[Stream], offset_s: float) -> np.ndarray:
    """[N, 2] wall time of a piece, and seconds since the one before it."""
    rows = [
        (after + offset_s, after - before)
        for stream in streams
        for before, after in zip(stream.arrivals_s, stream.arrivals_s[1:], strict=False)
    ]
    return np.array(rows).reshape(-1, 2)


def p99_ms(values: np.ndarray) -> float:
    return float(1e3 * np.percentile(values, 99)) if len(values) else float("nan")


def run_phase(
    mesh: MeshProcess, watch: ShardWork, prompts: Sequence[str], phase_s: float
) -> dict[str, Any]:
    """One kind of text for a while."""
    began_s, offset_s = time.time(), time.time() - time.monotonic()
    with traffic(mesh.url, prompts) as streams:
        while time.time() < began_s + phase_s:
            watch.look()
            time.sleep(LOOK_S)
        ended_s = time.time()
        events = mesh.get("/api/v1/events?after=-1000").json()["events"]
    done = [move for move in moves(events) if move[1] >= began_s]
    times = gaps(streams, offset_s)
    moving = np.zeros(len(times), bool)
    for from_s, until_s in done:
        moving |= (times[:, 0] >= from_s) & (times[:, 0] <= until_s)
    return {
        "streams": len(streams),
        "failed": sum(bool(stream.error) for stream in streams),
        "even_start": watch.balancedness(began_s, began_s + WINDOW_S),
        "even_after": watch.balancedness(ended_s - WINDOW_S, ended_s),
        "back_s": min((until - began_s for _, until in done), default=float("nan")),
        "moves": len(done),
        "itl_p99_ms": p99_ms(times[moving, 1]),
        "quiet_p99_ms": p99_ms(times[~moving, 1]),
    }


def measure(arguments: argparse.Namespace) -> Report:
    phase_s = QUICK_PHASE_S if arguments.quick else PHASE_S
    if arguments.drawn:
        return measure_drawn(phase_s)
    prompts = demo_prompts()
    runs: list[dict[str, Any]] = []
    with small_mesh() as mesh:
        watch = ShardWork(mesh)
        for domain in DOMAINS[:2] if arguments.quick else DOMAINS:
            before = runs[-1]["even_after"] if runs else float("nan")
            row = run_phase(mesh, watch, prompts[domain], phase_s)
            runs.append({"traffic": domain, "even_before": before, **row})
    notes = [f"{STREAMS} streams of {TOKENS} tokens, {phase_s:g} s of each kind of text"]
    return Report("rebalance", runs, targets(runs), notes)


def measure_drawn(phase_s: float) -> Report:
    with small_mesh(SIX) as mesh:
        runs = [run_drawn(mesh, kind, DRAWN_SHARDS, phase_s) for kind in ("zipf", "lognormal")]
    found = [Target("failed loads", sum(run["failed"] for run in runs), 0, "max", "")]
    notes = [
        f"{phase_s:g} s before and after the turn, {DRAWN_SHARDS} shards, calls of {ROWS} rows",
        *(f"{run['load']}: {run.pop('decided')}" for run in runs),
    ]
    for run in runs:
        name = f"{run['load']}: {DRAWN_GOAL} of the planner's table"
        found.append(Target(name, run["back_s"], BACK_GOAL_S, "max", "s", timed=True))
    return Report("rebalance drawn", runs, found, notes)


def targets(runs: Sequence[dict[str, Any]]) -> list[Target]:
    found = [Target("failed streams", sum(run["failed"] for run in runs), 0, "max", "")]
    for run in runs[1:]:
        name = f"to {run['traffic']}"
        even = run["even_after"] / run["even_before"]
        found.append(Target(f"{name}: balancedness, of before", even, EVEN_GOAL, "min", ""))
        if not np.isnan(run["back_s"]):
            found.append(
                Target(f"{name}: rebalanced", run["back_s"], BACK_GOAL_S, "max", "s", timed=True)
            )
        if not np.isnan(run["itl_p99_ms"]):
            ratio = run["itl_p99_ms"] / run["quiet_p99_ms"]
            found.append(Target(f"{name}: p99 between pieces", ratio, ITL_GOAL, "max", "x", True))
    return found


if __name__ == "__main__":
    run_benchmark(
        __doc__, measure, lambda parser: parser.add_argument("--drawn", action="store_true")
    )
