"""What dispatchers make of a placement, beside the best that could be made of it.

The dispatcher's own code splits batches of many sizes; times are those of each shard's cost model
with as many rows and distinct experts as it got. The best split is found, or bounded from below, by
integer programming, so ratios are never too high.
"""

import time

import numpy as np

from actors.dispatch.share import choose_replicas, share_out
from benchmarks.harness.exact_share import least_seconds, shard_seconds
from benchmarks.planner_workloads import Case, draw
from placement.cost_model import TYPICAL_COST, cost_table
from placement.planner import plan_placement

BATCH_ROWS = (16, 128, 1024, 8192)
EXACT_GAP = 2e-3
EXACT_LIMIT_S = 3.0
"""For one layer; beyond it the lower bound found so far counts."""
DECODE_ROWS, DECODE_TOP_K = 16, 8
REPEATS = 300


def replica_lists(held: np.ndarray, experts: int) -> tuple[np.ndarray, np.ndarray]:
    """(start, shards) of one layer's placement [D, S], as dispatchers look them up."""
    shard, slot = np.nonzero(held >= 0)
    order = np.lexsort((shard, held[shard, slot]))
    start = np.zeros(experts + 1, np.int32)
    np.cumsum(np.bincount(held[shard, slot], minlength=experts), out=start[1:])
    return start, shard[order].astype(np.int32)


def costs_of(case: Case) -> np.ndarray:
    """float64 [D, 3]"""
    return cost_table([TYPICAL_COST] * case.devices, case.speed.tolist())


def choices(rng: np.random.Generator, popularity: np.ndarray, rows: int, top_k: int) -> np.ndarray:
    """int32 [rows, top_k]: distinct experts of each row, by popularity [E]."""
    weight = np.log(np.maximum(popularity, 0.5))
    drawn = weight + rng.gumbel(size=(rows, popularity.size))
    return np.argpartition(-drawn, top_k, axis=1)[:, :top_k].astype(np.int32)


def serve(held: np.ndarray, counts: np.ndarray, cost: np.ndarray) -> np.ndarray:
    """int64 [D]: rows that one layer's shards get."""
    start, shards = replica_lists(held, counts.size)
    quota = share_out(counts.astype(np.int32), start, shards, np.ones(len(cost), np.bool_), cost)
    return np.bincount(shards, quota, minlength=len(cost)).astype(np.int64)


def served_balancedness(case: Case, experts: np.ndarray, counts: np.ndarray) -> float:
    """Balancedness in tokens, as of the other splits, of what dispatchers make of counts [L, E]."""
    cost = costs_of(case)
    slowest = sum(
        (serve(held, tokens, cost) / case.speed).max()
        for held, tokens in zip(experts, counts, strict=True)
    )
    return float(counts.sum() / case.speed.sum() / slowest)


def served_time(case: Case, counts: np.ndarray, layers: int) -> dict[str, float]:
    """Exact over served time of the next window's batches, summed over some layers, by rows."""
    plan = plan_placement(counts[0].sum(axis=0), case.speed, case.slots)
    rng = np.random.default_rng(case.seed)
    cost = costs_of(case)
    usable = np.ones(case.devices, np.bool_)
    found = {}
    for rows in BATCH_ROWS:
        served = exact = 0.0
        for layer in range(layers):
            ids = choices(rng, counts[1, 0, layer], rows, case.top_k)
            tokens = np.bincount(ids.ravel(), minlength=case.experts)
            start, shards = replica_lists(plan.experts[layer], case.experts)
            quota = share_out(tokens.astype(np.int32), start, shards, usable, cost)
            served += shard_seconds(shards, quota, cost).max()
            exact += least_seconds(tokens, start, shards, cost, EXACT_GAP, EXACT_LIMIT_S)
        found[f"{rows} rows"] = exact / served
    return found


def decode_micros(devices: int, kind: str) -> float:
    """Least time of choosing replicas for 16 x 8 choices, in microseconds; mean over layers.

    256 experts and, whatever `devices`, 32 redundant slots or more.
    """
    slots = np.full(devices, 256 // devices + max(32 // devices, 1))
    case = Case(
        name="decode", layers=8, experts=256, top_k=DECODE_TOP_K, speed=np.ones(devices),
        slots=slots, kind=kind, windows=2,
    )  # fmt: skip
    counts = draw(case)
    plan = plan_placement(counts[0].sum(axis=0), case.speed, case.slots)
    rng = np.random.default_rng(1)
    cost, usable = costs_of(case), np.ones(devices, np.bool_)
    choice = np.empty(DECODE_ROWS * DECODE_TOP_K, np.int32)
    micros = []
    for layer in range(case.layers):
        ids = choices(rng, counts[1, 0, layer], DECODE_ROWS, DECODE_TOP_K)
        start, shards = replica_lists(plan.experts[layer], case.experts)
        took = []
        for _ in range(REPEATS):
            begin = time.perf_counter_ns()
            choose_replicas(ids, start, shards, usable, cost, choice)
            took.append(time.perf_counter_ns() - begin)
        micros.append(min(took) / 1e3)
    return float(np.mean(micros))


def unloaded(case: Case) -> np.ndarray:
    """The placement of a mesh that has not seen any load, as the controller makes it at first."""
    return plan_placement(np.ones((case.layers, case.experts)), case.speed, case.slots).experts
