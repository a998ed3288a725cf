"""What is measured about a planner on one case; times are process times on one core, minima."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import coo_matrix, hstack

from benchmarks.planner_baselines import evenly_split, plan_greedy, plan_vllm, without_twins
from benchmarks.planner_served import served_balancedness, unloaded
from benchmarks.planner_workloads import Case
from placement.planner import Placement, plan_placement, split_tokens
from placement.search.bounds import balancedness, layer_bounds
from placement.validation import check_problem


def least_ms(action: Callable[[], Any], repeats: int = 5) -> float:
    """Least process time of some runs, in milliseconds."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        action()
        times.append(time.process_time() - start)
    return min(times) * 1e3


def token_balancedness(experts: np.ndarray, counts: np.ndarray, speed: np.ndarray) -> float:
    """Balancedness with tokens split on true counts."""
    times = split_tokens(experts, counts, speed).sum(axis=2) / speed
    return balancedness(times, check_problem(counts, speed))


def ceiling(load: np.ndarray, case: Case) -> float:
    """The balancedness no placement can exceed."""
    slots = np.broadcast_to(np.minimum(case.slots, case.experts), (case.layers, case.devices))
    bounds = layer_bounds(check_problem(load, case.speed, slots))
    return float(load.sum() / case.speed.sum() / bounds.sum())


def plan_quality(case: Case, counts: np.ndarray, repeats: int) -> dict[str, float]:
    """Full plans of every window but the last, seen in the next one; and how long they take."""
    found: dict[str, list[float]] = {}

    def note(figure: str, value: float) -> None:
        found.setdefault(figure, []).append(value)

    blind = unloaded(case)
    for window in range(case.windows - 1):
        load = counts[window].sum(axis=0).astype(float)
        plan = plan_placement(load, case.speed, case.slots)
        note("planned / bound", plan.balancedness / plan.bound)
        note("ceiling", ceiling(load, case))
        note(
            "next window",
            token_balancedness(plan.experts, counts[window + 1].sum(axis=0), case.speed),
        )
        for batch in counts[window + 1, :4]:
            note("2k batch", token_balancedness(plan.experts, batch, case.speed))
            note("2k batch, served", served_balancedness(case, plan.experts, batch))
            note("2k batch, served, first plan", served_balancedness(case, blind, batch))
    full_ms = least_ms(lambda: plan_placement(load, case.speed, case.slots), repeats)
    return {figure: float(np.mean(values)) for figure, values in found.items()} | {
        "full plan ms": full_ms
    }


def baseline_quality(case: Case, counts: np.ndarray, repeats: int) -> dict[str, dict[str, float]]:
    """The same for the others: their placement with equal parts, and with our split.

    They get the same windows, batches and repetitions.
    """
    rows: dict[str, dict[str, float]] = {}
    for name, planner in (("vLLM EPLB", plan_vllm), ("greedy EPLB", plan_greedy)):
        found: dict[str, list[float]] = {"equal": [], "next": [], "batch": [], "ours": []}
        for window in range(case.windows - 1):
            load = counts[window].sum(axis=0).astype(float)
            experts = planner(load, case.slots)
            if experts is None:
                break

            def even(tokens: np.ndarray, experts: np.ndarray = experts) -> float:
                times = evenly_split(experts, tokens) / case.speed
                return balancedness(times, check_problem(tokens, case.speed))

            after = counts[window + 1]
            found["equal"].append(even(load) / ceiling(load, case))
            found["next"].append(even(after.sum(axis=0)))
            found["batch"] += [even(b) for b in after[:4]]
            found["ours"].append(
                token_balancedness(without_twins(experts), after.sum(axis=0), case.speed)
            )
        if found["equal"]:
            took = least_ms(
                lambda load=load, planner=planner: planner(load, case.slots),  # type: ignore[misc]
                repeats,
            )
            rows[name] = {
                "planned / bound": float(np.mean(found["equal"])),
                "next window": float(np.mean(found["next"])),
                "2k batch": float(np.mean(found["batch"])),
                "next window, our split": float(np.mean(found["ours"])),
                "full plan ms": took,
            }
    return rows


def split_quality(case: Case, counts: np.ndarray) -> dict[str, float]:
    """Time per layer of a split on next window's batches, and its distance from the optimum."""
    plan = plan_placement(counts[0].sum(axis=0), case.speed, case.slots)
    batch = counts[1, 0].astype(float)
    micros = least_ms(lambda: split_tokens(plan.experts, batch, case.speed), 9)
    shares = split_tokens(plan.experts, batch, case.speed)
    gaps = []
    for layer in range(0, case.layers, max(1, case.layers // 12)):
        reached = (shares[layer].sum(axis=1) / case.speed).max()
        gaps.append(reached / optimal_split(plan.experts[layer], batch[layer], case.speed) - 1)
    return {"split µs / layer": micros * 1e3 / case.layers, "split over LP": float(max(gaps))}


def optimal_split(experts: np.ndarray, tokens: np.ndarray, speed: np.ndarray) -> float:
    """Slowest device's time by linear programming, for one layer."""
    device, slot = np.nonzero(experts >= 0)
    n = device.size
    ones, columns = np.ones(n), np.arange(n)
    serve = coo_matrix((ones, (experts[device, slot], columns)), shape=(tokens.size, n + 1))
    limit = hstack([coo_matrix((ones, (device, columns)), shape=(speed.size, n)), -speed[:, None]])
    cost = np.zeros(n + 1)
    cost[n] = 1
    return float(linprog(cost, limit, np.zeros(speed.size), serve, tokens).fun)


def drift(case: Case, counts: np.ndarray, budget: int) -> dict[str, Any]:
    """Nudges from window to window: copies, balancedness right after and in the next window."""
    plan = plan_placement(counts[0].sum(axis=0), case.speed, case.slots)
    first = plan.experts
    after, served, stale, copies, times = [], [], [], [], []
    for window in range(1, case.windows):
        load = counts[window].sum(axis=0)
        served.append(token_balancedness(plan.experts, load, case.speed))
        stale.append(token_balancedness(first, load, case.speed))
        nudge = _nudge(case, load, plan, budget)
        times.append(least_ms(lambda load=load, plan=plan: _nudge(case, load, plan, budget), 2))
        copies.append(len(nudge.moves) / case.layers)
        after.append(nudge.balancedness)
        plan = nudge
    return {
        "after nudge": after,
        "next window": served,
        "never moved": stale,
        "copies / layer": copies,
        "ms": times,
    }


def _nudge(case: Case, load: np.ndarray, plan: Placement, budget: int) -> Placement:
    return plan_placement(
        load, case.speed, case.slots, current=plan.experts, max_moves_per_layer=budget
    )


def throttled(case: Case, counts: np.ndarray) -> float:
    """Balancedness with one device at 80 % of its speed and no move; mean over devices."""
    load = counts[0].sum(axis=0)
    plan = plan_placement(load, case.speed, case.slots)
    found = []
    for device in range(case.devices):
        speed = case.speed.copy()
        speed[device] *= 0.8
        found.append(token_balancedness(plan.experts, load, speed))
    return float(np.mean(found))


def device_lost(case: Case, counts: np.ndarray) -> dict[str, float]:
    """One device gone: mandatory copies plus two per layer, against the survivors' bound.

    Every device has one slot more than in the case, without which some could not be replaced.
    """
    load = counts[0].sum(axis=0).astype(float)
    roomy = case.slots + 1
    plan = plan_placement(load, case.speed, roomy)
    found, forced = [], []
    for device in range(0, case.devices, max(1, case.devices // 4)):
        left = np.delete(plan.experts, device, axis=1)
        speed, slots = np.delete(case.speed, device), np.delete(roomy, device)
        after = plan_placement(load, speed, slots, current=left, max_moves_per_layer=2)
        found.append(after.balancedness / after.bound)
        forced.append(len(after.moves) / case.layers)
    return {"balancedness / bound": float(np.mean(found)), "copies / layer": float(np.mean(forced))}


def full_replan_copies(case: Case, counts: np.ndarray, window: int) -> float:
    """Copies per layer that planning anew takes, one window after the other."""
    old = plan_placement(counts[window - 1].sum(axis=0), case.speed, case.slots)
    new = plan_placement(counts[window].sum(axis=0), case.speed, case.slots, current=old.experts)
    return len(new.moves) / case.layers
