"""Random faults, one after the other, under streams that never stop.

The demo model through the whole mesh: endpoint, two engines, a router, three shards that hold every
expert twice. Eight clients ask for greedy streams without a pause. Each fault ends (SIGKILL) or
stops (SIGSTOP) a process that is drawn with a seed: an engine, a shard, the router, the controller
or the batch runner; the only gateway is spared. The next one mostly comes when all parts are there
again (WHOLE), sometimes in the middle of the repair.

  failed      streams that did not end well; faults: what was under way then
  turned      streams whose text is not the undisturbed one. Sums of an expert's rows are grouped
              by shard, and prefill and decode round differently: where two tokens are nearly tied
              a text may take the other one
  grown       what processes that lived through it all have more of: open files, memory
  zombies     processes that have ended and are still listed, before the stop
  left        processes, shared memory and files after the mesh was stopped
"""

import argparse
import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import httpx
import psutil

from benchmarks.correctness import DEMO
from benchmarks.harness.report import Report, Target, run_benchmark
from orchestrator.status import ComponentKind
from tests.e2e.mesh_process import MeshProcess
from tests.nodes.meshes import MODEL
from tests.nodes.streams import PROMPTS, Stream

FAULTS, QUICK_FAULTS = 200, 4
TOKENS = 120
WHOLE = 0.8
"""Share of the faults that wait until the mesh is whole again."""
PAUSE_S = (0.5, 4.0)
REPAIR_TIMEOUT_S = 240.0
SETTLE_S = 3.0
SHOWN = 5
OUR_TITLES = ("ray::", f"{sys.executable} -m orchestrator")
"""Ray's own log monitor opens the logs of every worker, up to a limit of its own."""
SPARED = (ComponentKind.GATEWAY,)
TURNED_GOAL = 5 / 120
"""Share of continued greedy texts that may differ: where prefill and decode round differently."""
FILES_GOAL = 20
MEMORY_GOAL = 1.25


@dataclass(slots=True)
class Load:
    """Clients that ask for the same streams again and again until they are told to stop."""

    url: str
    ended: list[Stream] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def start(self) -> None:
        self._threads = [threading.Thread(target=self._ask, args=(p,)) for p in PROMPTS]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, prompt: str) -> None:
        while not self._stop.is_set():
            stream = Stream(prompt)
            stream.run(self.url, TOKENS)
            self.ended.append(stream)


@dataclass(frozen=True, slots=True)
class Usage:
    """Of one process."""

    title: str
    files: int
    memory_bytes: int


def chaos_config() -> dict[str, Any]:
    """Of a mesh that has each part twice, but for the controller and the router."""
    pool = {"vendor": "cpu", "memory": "11MiB", "speed": 1.0}
    return {
        "mesh": {"name": "chaos"},
        "model": {"path": str(DEMO / "checkpoint"), "served_name": MODEL},
        "engines": {"replicas": 2, "vllm": {"max_num_seqs": 16, "max_num_batched_tokens": 512}},
        "pools": {"a": pool, "b": pool, "c": pool},
        "placement": {"min_copies": 2},
        "router": {"mode": "actor"},
        # Faults come faster here than any budget for crashes allows.
        "controller": {"restart_budget": 10_000},
        "gateway": {"port": 0, "migration_limit": 100, "engine_wait_s": 120},
    }


@contextmanager
def chaos_mesh() -> Iterator[MeshProcess]:
    with MeshProcess(chaos_config()) as mesh:
        mesh.wait_for("ready at")
        yield mesh


def components(mesh: MeshProcess) -> dict[str, dict[str, Any]]:
    """By id; empty while the controller is away."""
    with suppress(httpx.HTTPError):
        answer = mesh.get("/api/v1/status")
        if answer.is_success:
            return {c["id"]: c for c in answer.json()["components"]}
    return {}


def is_whole(mesh: MeshProcess, count: int) -> bool:
    now = components(mesh)
    return len(now) == count and all(c["state"] == "ready" and c["pid"] for c in now.values())


def wait_for(condition: Callable[[], object], timeout_s: float) -> float:
    """Seconds until `condition()`; inf if it does not come true."""
    began_s = time.monotonic()
    while not condition():
        if time.monotonic() - began_s > timeout_s:
            return float("inf")
        time.sleep(0.1)
    return time.monotonic() - began_s


def draw(
    chance: random.Random, now: dict[str, dict[str, Any]]
) -> tuple[dict[str, Any], signal.Signals]:
    """Who is next, and how. Sorted first: a seed gives the same faults every time."""
    targets = sorted(id for id, c in now.items() if c["kind"] not in SPARED and c["pid"])
    how = chance.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGSTOP])
    return now[chance.choice(targets)], how


def inject(
    mesh: MeshProcess, load: Load, seed: int, faults: int, minutes: float
) -> list[dict[str, Any]]:
    """One row for each fault; after `minutes` no further one."""
    chance, rows = random.Random(seed), []
    whole = components(mesh)
    ends_s = time.monotonic() + 60 * minutes
    for number in range(faults):
        last = number == faults - 1 or time.monotonic() > ends_s
        wait_for(partial(components, mesh), REPAIR_TIMEOUT_S)
        victim, how = draw(chance, components(mesh) or whole)
        before = len(load.ended)
        with suppress(ProcessLookupError):
            os.kill(victim["pid"], how)
        time.sleep(chance.uniform(*PAUSE_S))
        if chance.random() < WHOLE or last:
            repaired_s = wait_for(partial(_replaced, mesh, victim, len(whole)), REPAIR_TIMEOUT_S)
        else:
            repaired_s = float("nan")
        errors = [s.error for s in load.ended[before:] if s.error]
        rows.append({
            "fault": number, "lost": victim["id"], "signal": how.name, "repaired_s": repaired_s,
            "failed": len(errors), "error": errors[0][:80] if errors else "",
        })  # fmt: skip
        print(rows[-1], flush=True)
        if last:
            break
    return rows


def _replaced(mesh: MeshProcess, victim: dict[str, Any], count: int) -> bool:
    now = components(mesh).get(victim["id"])
    return bool(now) and now["pid"] != victim["pid"] and is_whole(mesh, count)


def usage(mesh: MeshProcess) -> dict[int, Usage]:
    """Of the mesh's processes, by process id."""
    found = {}
    for pid, process in list(mesh.seen.items()):
        with suppress(psutil.Error):
            found[pid] = Usage(
                " ".join(process.cmdline())[:60], process.num_fds(), process.memory_info().rss
            )
    return found


def zombies(mesh: MeshProcess) -> int:
    """Processes of the mesh that have ended and are still listed."""
    below = psutil.Process(mesh.pid).children(recursive=True)
    return sum(process.status() == psutil.STATUS_ZOMBIE for process in below)


def undisturbed(mesh: MeshProcess) -> dict[str, str]:
    """The text for each prompt."""
    load = Load(mesh.url)
    load.start()
    load.stop()
    assert not any(stream.error for stream in load.ended), load.ended
    return {stream.prompt: stream.text for stream in load.ended}


def run(
    faults: int, seed: int, minutes: float = float("inf")
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Rows of the faults, and the figures of the whole run."""
    with chaos_mesh() as mesh:
        texts = undisturbed(mesh)
        before = usage(mesh)
        load = Load(mesh.url)
        load.start()
        try:
            rows = inject(mesh, load, seed, faults, minutes)
        finally:
            load.stop()
        after = usage(mesh)
        time.sleep(SETTLE_S)
        dead = zombies(mesh)
        mesh.signal(signal.SIGTERM)
        code = mesh.wait()
        left = mesh.left_over()
    survivors = before.keys() & after.keys()
    ours = [pid for pid in survivors if after[pid].title.startswith(OUR_TITLES)]
    figures = {
        "streams": float(len(load.ended)),
        "failed": float(sum(bool(s.error) for s in load.ended)),
        "turned": float(sum(s.text != texts[s.prompt] for s in load.ended if not s.error)),
        "unrepaired": float(sum(row["repaired_s"] == float("inf") for row in rows)),
        "longest_gap_s": max(s.gap_s() for s in load.ended),
        "files_grown": float(max(after[p].files - before[p].files for p in ours)),
        "memory_grown": sum(after[p].memory_bytes for p in survivors)
        / sum(before[p].memory_bytes for p in survivors),
        "zombies": float(dead),
        "left": float(len(left)),
        "exit_code": float(code),
    }
    for line in left:
        print(f"left: {line}", flush=True)
    grown = sorted(survivors, key=lambda pid: before[pid].files - after[pid].files)
    for pid in grown[:SHOWN]:
        print(f"files: {before[pid].files} to {after[pid].files}: {after[pid].title}", flush=True)
    return rows, figures


def measure(arguments: argparse.Namespace) -> Report:
    faults = arguments.faults or (QUICK_FAULTS if arguments.quick else FAULTS)
    rows, figures = run(faults, arguments.seed, arguments.minutes)
    lost = Counter(row["lost"].rpartition("-")[0] or row["lost"] for row in rows)
    notes = [
        f"{len(rows)} faults with seed {arguments.seed}: "
        + ", ".join(f"{count} x {kind}" for kind, count in sorted(lost.items())),
        ", ".join(f"{name} {value:g}" for name, value in figures.items()),
    ]
    return Report("chaos", rows, targets(figures), notes)


def targets(figures: dict[str, float]) -> list[Target]:
    turned = figures["turned"] / figures["streams"]
    return [
        Target("failed streams", figures["failed"], 0, "max", ""),
        Target("share of other texts", turned, TURNED_GOAL, "max", ""),
        Target("parts that did not come back", figures["unrepaired"], 0, "max", ""),
        Target("open files more than before", figures["files_grown"], FILES_GOAL, "max", ""),
        Target("memory of the others", figures["memory_grown"], MEMORY_GOAL, "max", "x"),
        Target("zombies", figures["zombies"], 0, "max", ""),
        Target("left behind", figures["left"], 0, "max", ""),
        Target("exit code", figures["exit_code"], 0, "max", ""),
    ]


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--faults", type=int, help=f"how many (default: {FAULTS})")
    parser.add_argument(
        "--minutes", type=float, default=float("inf"), help="no further fault after so long"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the faults (default: 0)")


if __name__ == "__main__":
    run_benchmark(__doc__, measure, options)
