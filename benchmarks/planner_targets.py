"""What the planner and the served split should reach, on the workloads of `benchmarks.planner`."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.harness.report import Target

Runs = dict[str, dict[str, Any]]

SWAP_GOALS = {"equal": 8.0, "unequal": 4.0}
"""Copies per layer after a jump of popularity."""

KNOWN_MISSES = {
    "2k batch, 16 unequal": 0.94,
    "30 % swap, balancedness, 32 equal": 0.91,
    "30 % swap, balancedness, 16 unequal": 0.9,
    "device lost, + 2 copies, 32 equal": 0.94,
}
"""Targets that are missed so far, and what is reached; docs/placement.md says why."""

SERVED_GOAL = 0.98
"""Time of the best possible split over that of the served one."""


def targets(runs: Runs) -> list[Target]:
    """Every target with the value reached: the worst over the Zipf and log-normal workloads."""
    found: list[Target] = []

    def add(name: str, value: float, goal: float, direction: str, unit: str) -> None:
        timed = unit in ("ms", "µs", "µs / layer", "s")
        wanted = {">=": "min", "<=": "max"}[direction]
        known = KNOWN_MISSES.get(name)
        found.append(Target(name, round(float(value), 5), goal, wanted, unit, timed, known))

    def rows(name: str) -> list[dict[str, Any]]:
        return [runs[f"{name} {kind}"] for kind in ("zipf", "lognormal")]

    def ours(name: str, figure: str) -> list[float]:
        return [row["ours"][figure] for row in rows(name)]

    joined = ["32 equal", "16 equal", "64 equal", "128 equal", "256 equal"]
    for name in [*joined, "16 unequal"]:
        add(f"planned / bound, {name}", min(ours(name, "planned / bound")), 0.999, ">=", "")
    for name in ("32 equal, 16 redundant", "32 equal, none redundant"):
        add(f"planned / bound, {name}", min(ours(name, "planned / bound")), 0.995, ">=", "")
    small = "16 fast but small"
    add(f"planned / bound, {small}", min(ours(small, "planned / bound")), 0.997, ">=", "")
    windows = {"32 equal": 0.97, "16 equal": 0.985, "16 unequal": 0.98, small: 0.96}
    for name, goal in windows.items():
        add(f"next window, {name}", min(ours(name, "next window")), goal, ">=", "")
    batches = {"32 equal": 0.91, "16 equal": 0.91, "16 unequal": 0.95, small: 0.95}
    for name, goal in batches.items():
        add(f"2k batch, {name}", min(ours(name, "2k batch")), goal, ">=", "")
    for name in ("32 equal", "16 equal", "16 unequal", small):
        for batch in runs[f"{name} zipf"]["exact / served"]:
            reached = min(row["exact / served"][batch] for row in rows(name))
            add(f"best possible / served, in time, {name}, {batch}", reached, SERVED_GOAL, ">=", "")
    for devices, micros in runs["choice µs"].items():
        add(f"choice of replicas, 16 x 8 choices, {devices} devices", micros, 20, "<=", "µs")
    limits = {
        "32 equal": 10, "64 equal": 20, "128 equal": 100, "256 equal": 300, "16 unequal": 5,
        small: 5,
    }  # fmt: skip
    for name, goal in limits.items():
        add(f"full plan, {name}", max(ours(name, "full plan ms")), goal, "<=", "ms")
    for name, goal in {"32 equal": 20, "16 unequal": 10}.items():
        slowest = max(np.median(row["drift"]["ms"]) for row in rows(name))
        add(f"incremental plan, {name}", float(slowest), goal, "<=", "ms")
    for name in ("32 equal", "16 equal", "16 unequal"):
        unequal = "unequal" in name
        copies = max(np.mean(row["drift"]["copies / layer"]) for row in rows(name))
        reached = min(np.mean(row["drift"]["after nudge"]) for row in rows(name))
        add(f"drift, copies per layer and window, {name}", copies, 1 if unequal else 2, "<=", "")
        add(f"drift, balancedness, {name}", reached, 0.99 if unequal else 0.985, ">=", "")
        copies = max(row["swap"]["copies / layer"][1] for row in rows(name))
        reached = min(row["swap"]["after nudge"][1] for row in rows(name))
        goal = SWAP_GOALS["unequal" if unequal else "equal"]
        add(f"30 % swap, copies per layer, {name}", copies, goal, "<=", "")
        add(f"30 % swap, balancedness, {name}", reached, 0.96, ">=", "")
    for name in ("32 equal", "16 unequal", small):
        add(f"split, {name}", max(ours(name, "split µs / layer")), 20, "<=", "µs / layer")
        add(f"split over LP, {name}", max(ours(name, "split over LP")), 1e-4, "<=", "")
    for name in ("32 equal", "16 unequal"):
        throttled = min(row["throttled"] for row in rows(name))
        add(f"one device at 80 %, no move, {name}", throttled, 0.97, ">=", "")
        lost = min(row["device lost"]["balancedness / bound"] for row in rows(name))
        add(f"device lost, + 2 copies, a slot more each, {name}", lost, 0.98, ">=", "")
    lost = min(
        row["device lost"]["balancedness / bound"] for row in rows("32 equal, none redundant")
    )
    add("device lost, + 2 copies, 32 equal", lost, 0.98, ">=", "")
    thousand = runs["1024 devices"]
    add("1,024 devices x 61 x 384", thousand["seconds"], 2, "<=", "s")
    add("planned / bound, 1,024 devices", thousand["planned / bound"], 0.99, ">=", "")
    return found
