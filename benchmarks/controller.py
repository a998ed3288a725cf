"""How long a controller of a large mesh lets a question wait, while it plans and moves copies.

The control plane's own loop (core, runner, journal) over 256 shards in memory that hold 61 layers
of 384 experts. It places all experts, is asked for a rebalance on a Zipf load, and moves what that
takes. A question for the status is asked every few milliseconds all the while.

  answer_p50_ms, answer_p99_ms  from the question to the answer
  busy_ms                       longest time of the processor that the loop spent on anything else
                                between two turns of the question: what it waits on an idle machine
  plan_s                        of the processor, for the plan; moved: copies loaded
"""

import argparse
import asyncio
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness.report import Report, Target, run_benchmark
from orchestrator.config.pools import PoolConfig
from orchestrator.control.events import LoadSeen
from orchestrator.control.journal import Journal
from orchestrator.control.keys import EXPERT, PlacedKey
from orchestrator.control.lifecycle import Kind
from orchestrator.control.plan_request import PlanRequest, Proposal
from orchestrator.control.planning import make_plan
from orchestrator.control.runner import Runner
from orchestrator.control.settings import Settings
from orchestrator.control.state import Facts, Intent, Place, State
from orchestrator.runtime.status import component_statuses
from tests.control import fakes

LAYERS, EXPERTS, SHARDS = 61, 384, 256
ROOM = 1.3
"""Copies that shards have room for, of one of each expert."""
PAUSE_S = 0.005
ANSWER_GOAL_MS = 200.0
MOVE_LIMIT_S = 120.0


@dataclass(slots=True)
class Asker:
    """Asks the runner for the mesh's status, again and again."""

    runner: Runner
    waited_s: list[float] = field(default_factory=list)
    busy_s: list[float] = field(default_factory=list)

    async def ask(self) -> None:
        pools = {"cpu": PoolConfig(vendor="cpu")}
        while True:
            due_s, before_s = time.monotonic() + PAUSE_S, time.thread_time()
            await asyncio.sleep(PAUSE_S)
            self.busy_s.append(time.thread_time() - before_s)
            statuses = component_statuses(self.runner.state, pools, lambda _id, _generation: None)
            for status in statuses:
                status.model_dump(mode="json")
            self.waited_s.append(time.monotonic() - due_s)

    def take(self) -> dict[str, Any]:
        waited, busy = 1e3 * np.array(self.waited_s), 1e3 * np.array(self.busy_s)
        self.waited_s.clear()
        self.busy_s.clear()
        return {
            "questions": len(waited),
            "answer_p50_ms": float(np.median(waited)),
            "answer_p99_ms": float(np.percentile(waited, 99)),
            "busy_ms": float(busy.max()),
        }


class Planner:
    """The planner, with the processor's time that it took."""

    def __init__(self) -> None:
        self.took_s = 0.0

    def __call__(self, request: PlanRequest) -> Proposal:
        began_s = time.thread_time()
        proposal = make_plan(request)
        self.took_s = time.thread_time() - began_s
        return proposal


def first_state() -> State:
    keys = frozenset(
        PlacedKey(EXPERT, layer, expert) for layer in range(LAYERS) for expert in range(EXPERTS)
    )
    ids = [f"cpu-{number}" for number in range(SHARDS)]
    places = {id: Place(id, Kind.SHARD, "cpu") for id in ids}
    places["engine-0"] = Place("engine-0", Kind.ENGINE, "engine")
    return State(
        Settings(), Intent(keys=keys, places=places), Facts(started_s=time.monotonic())
    )  # fmt: skip


async def settled(runner: Runner) -> None:
    """Return when there is an epoch and nothing moves."""
    async with asyncio.timeout(MOVE_LIMIT_S):
        while runner.state.intent.epoch is None or runner.state.intent.transaction is not None:
            await asyncio.sleep(0.01)


async def run(folder: Path) -> list[dict[str, Any]]:
    fakes.CAPACITY_KEYS = int(LAYERS * EXPERTS / SHARDS * ROOM)
    journal, planner = Journal(folder, "mesh"), Planner()
    runner = Runner(
        first_state(), journal, fakes.FakeComponents(), fakes.FakeFollowers(),
        probe_interval_s=1.0, plan=planner,
    )  # fmt: skip
    await runner.start()
    await settled(runner)  # also has the planner's machine code loaded
    asker = Asker(runner)
    asking = asyncio.create_task(asker.ask())
    rows: list[dict[str, Any]] = []
    try:
        load = np.random.default_rng(0).zipf(1.4, (LAYERS, EXPERTS)).clip(max=1000) * 100.0
        runner.tell(lambda now_s: LoadSeen(now_s, load))
        await asyncio.sleep(1.0)
        rows.append({"while": "nothing happens", "plan_s": 0.0, "moved": 0, **asker.take()})
        await runner.ask("rebalance")
        asked = {"while": "it plans", "plan_s": planner.took_s, "moved": 0}
        rows.append(asked | asker.take())
        before = sum(map(len, _copies(runner).values()))
        await settled(runner)
        rows.append({"while": "copies move", "plan_s": 0.0, "moved": before, **asker.take()})
    finally:
        asking.cancel()
        await runner.stop()
    return rows


def _copies(runner: Runner) -> dict[str, frozenset[PlacedKey]]:
    """Those that the transaction under way loads."""
    transaction = runner.state.intent.transaction
    batches = transaction.batches if transaction else ()
    return {f"{n}/{id}": keys for n, one in enumerate(batches) for id, keys in one.add.items()}


def measure(_: argparse.Namespace) -> Report:
    with tempfile.TemporaryDirectory(prefix="xm") as folder:
        rows = asyncio.run(run(Path(folder)))
    targets = [
        Target(f"the loop is busy while {row['while']}", row["busy_ms"], ANSWER_GOAL_MS, "max",
               "ms", timed=True)
        for row in rows
    ] + [
        Target(f"p99 of answers while {row['while']}", row["answer_p99_ms"], ANSWER_GOAL_MS,
               "max", "ms", timed=True)
        for row in rows
    ]  # fmt: skip
    note = f"{LAYERS} layers x {EXPERTS} experts on {SHARDS} shards with room for {ROOM:g} of each"
    return Report("controller", rows, targets, [note])


if __name__ == "__main__":
    run_benchmark(__doc__ or "", measure)
