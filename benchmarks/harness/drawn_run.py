"""A drawn load that turns, through the shards of a running mesh."""

import time
from typing import Any

import numpy as np

from actors.experts.families import read_expert_spec
from benchmarks.correctness import DEMO
from benchmarks.harness.drawn_load import ROWS, DrawnLoad
from benchmarks.harness.shard_work import ShardWork, even
from benchmarks.planner_served import choices, costs_of, serve
from benchmarks.planner_workloads import Case, draw
from placement.planner import plan_placement
from tests.e2e.mesh_process import MeshProcess

LOOK_S = 1.0
LAST_S = 6.0
WINDOW_S = 3.0
"""Of a balancedness after the load has turned: one that begins before the rebalance ends still
counts the old placement."""
EVEN_GOAL = 0.95
"""Of the planner's table."""
SWAPPED = 0.5
"""Part of the experts that change places in popularity when the load turns."""
TABLE_CALLS = 40
"""Calls of each layer that the planner's table is made of and held against."""


def run_drawn(mesh: MeshProcess, kind: str, shards: int, phase_s: float) -> dict[str, Any]:
    """The load turns after `phase_s` and goes on as long."""
    spec = read_expert_spec(DEMO / "checkpoint")
    case = Case(
        name=kind, layers=len(spec.layers), experts=spec.num_experts, top_k=spec.top_k,
        speed=np.ones(shards), slots=slots_of(mesh, len(spec.layers)), kind=kind, windows=2,
        batches=1, swap_at=1, swap_fraction=SWAPPED, seed=3,
    )  # fmt: skip
    before, after = draw(case)[:, 0].astype(float)
    table, work = EVEN_GOAL * table_of(case, after), ShardWork(mesh)
    with DrawnLoad(mesh.quick_status()["address"], spec, before, seed=3) as load:
        look_until(work, time.time() + phase_s)
        load.popularity, turned_s = after, time.time()
        look_until(work, turned_s + phase_s)
    seconds = [at_s for at_s, _ in work.seen if at_s >= turned_s + WINDOW_S]
    back = (s for s in seconds if work.balancedness(s - WINDOW_S, s) >= table)
    return {
        "load": kind,
        "failed": int(bool(load.failed)),
        "steps": load.steps,
        "even_before": work.balancedness(turned_s - LAST_S, turned_s),
        "even_turned": work.balancedness(turned_s, turned_s + WINDOW_S),
        "even_after": work.balancedness(seconds[-1] - LAST_S, seconds[-1]),
        "table": table / EVEN_GOAL,
        "back_s": next(back, float("inf")) - turned_s,
        "weight": work.slowest(turned_s),
        "decided": decided(mesh, turned_s),
    }


def slots_of(mesh: MeshProcess, layers: int) -> np.ndarray:
    """[L, D] experts that each shard may hold of a layer, with one more copy free as plans have."""
    shards = mesh.get("/api/v1/shards").json()["shards"]
    held = shards[0]["held_bytes"] / shards[0]["copies"]
    slots = [max(1, int(shard["capacity_bytes"] // held - 1) // layers) for shard in shards]
    return np.tile(slots, (layers, 1))


def table_of(case: Case, popularity: np.ndarray) -> float:
    """Balancedness that dispatchers make of calls like those of `DrawnLoad` on the placement that
    the planner makes for them."""
    rng = np.random.default_rng(case.seed)
    calls = np.array([
        [
            np.bincount(choices(rng, row, ROWS, case.top_k).ravel(), minlength=case.experts)
            for row in popularity
        ]
        for _ in range(TABLE_CALLS)
    ])  # fmt: skip
    placed = plan_placement(calls.sum(axis=0), case.speed, case.slots).experts
    cost = costs_of(case)
    done = np.array([
        sum(serve(placed[layer], call[layer], cost) for call in calls)
        for layer in range(case.layers)
    ])  # fmt: skip
    return even(done.T, case.speed)


def look_until(work: ShardWork, end_s: float) -> None:
    while time.time() < end_s:
        work.look()
        time.sleep(LOOK_S)


def decided(mesh: MeshProcess, from_s: float) -> str:
    """What the controller last had to say about the load since then, and how late."""
    said = [
        f"{event['reason']} (after {event['wall_s'] - from_s:.1f} s)"
        for event in mesh.get("/api/v1/events?after=-1000").json()["events"]
        if event["wall_s"] >= from_s and event["step"] in ("consider", "planned", "done")
    ]
    return "; ".join(said) or "nothing"
