"""Measures the planner beside vLLM's EPLB and a greedy baseline, on all workloads.

    python -m benchmarks.planner [--quick] [--json FILE] [--plots FOLDER]

Needs the `dev` extra; vLLM's policy is measured where vLLM is installed. Single-threaded; times are
process times, minima of several runs.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import planner_measures as figures
from benchmarks.harness.report import Report, run_benchmark
from benchmarks.planner_served import decode_micros, served_time
from benchmarks.planner_targets import SWAP_GOALS, Runs, targets
from benchmarks.planner_workloads import Case, draw
from placement.planner import plan_placement

EQUAL_BUDGET = 4
UNEQUAL_BUDGET = 3
"""Copies per layer and window a nudge may take; most layers take none."""

SWAP_BUDGETS = {"equal": (8, 9, 10, 11, 12), "unequal": (4, 5, 6)}
"""Limits tried after popularity jumps; the largest whose mean stays within the goal counts."""

SERVED_CASES = ("32 equal", "16 equal", "16 unequal", "16 fast but small")
"""Workloads whose batches are also split exactly, which takes a while."""

DECODE_DEVICES = (2, 4, 8, 16, 32)


def cases(quick: bool) -> list[Case]:
    """All workloads: equal devices from 16 to 256, unequal speeds, fast devices with few slots."""
    windows = 3 if quick else 6
    found = []
    for kind in ("zipf", "lognormal") if quick else ("zipf", "lognormal", "uniform"):

        def case(
            name: str, layers: int, top_k: int, speed: Any, slots: Any, kind: str = kind
        ) -> Case:
            return Case(
                name=f"{name} {kind}",
                layers=layers,
                experts=256,
                top_k=top_k,
                speed=np.asarray(speed, float),
                slots=np.asarray(slots),
                kind=kind,
                windows=windows,
            )

        unequal = np.repeat([1.0, 0.4], 8)
        found += [
            case("32 equal", 58, 8, np.ones(32), np.full(32, 9)),
            case("16 equal", 43, 6, np.ones(16), np.full(16, 17)),
            case("32 equal, 16 redundant", 58, 8, np.ones(32), np.tile([9, 8], 16)),
            case("32 equal, none redundant", 58, 8, np.ones(32), np.full(32, 8)),
            case("64 equal", 58, 8, np.ones(64), np.full(64, 5)),
            case("128 equal", 58, 8, np.ones(128), np.full(128, 3)),
            case("256 equal", 58, 8, np.ones(256), np.full(256, 2)),
            case("16 unequal", 43, 6, unequal, np.full(16, 17)),
            case("16 fast but small", 43, 6, unequal, np.repeat([12, 24], 8)),
        ]
    return found


def run_case(case: Case, quick: bool) -> dict[str, Any]:
    """All measurements of one case."""
    counts = draw(case)
    repeats = 3 if quick else 7
    ours = figures.plan_quality(case, counts, repeats)
    if case.devices <= 64:
        ours |= figures.split_quality(case, counts)
    row: dict[str, Any] = {"ours": ours}
    if case.devices <= 32:
        row |= figures.baseline_quality(case, counts, repeats)
    if "none redundant" in case.name:
        # One slot more each is the 32 equal case: a loss leaves fewer replicas than devices.
        row["device lost"] = figures.device_lost(case, counts)
    if case.devices <= 32 and "redundant" not in case.name:
        row |= _changes(case, quick)
        row["throttled"] = figures.throttled(case, counts)
        row["device lost"] = figures.device_lost(case, counts)
    if case.name.removesuffix(f" {case.kind}") in SERVED_CASES:
        row["exact / served"] = served_time(case, counts, layers=2 if quick else 8)
    return row


def _changes(case: Case, quick: bool) -> dict[str, Any]:
    """Steady drift, and a jump of 30 % of the experts."""
    group = "unequal" if case.speed.min() < case.speed.max() else "equal"
    steady = _with(case, windows=6 if quick else 12)
    budget = EQUAL_BUDGET if group == "equal" else UNEQUAL_BUDGET
    found = {"drift": figures.drift(steady, draw(steady), budget)}
    jump = _with(case, windows=4, swap_at=2)
    counts = draw(jump)
    for budget in SWAP_BUDGETS[group][:: 2 if quick else 1]:
        swap = figures.drift(jump, counts, budget)
        if "swap" in found and swap["copies / layer"][1] > SWAP_GOALS[group]:
            break
        found["swap"] = swap | {"limit": budget}
    found["swap"]["full re-plan copies"] = figures.full_replan_copies(jump, counts, 2)
    return found


def _with(case: Case, **changes: Any) -> Case:
    fields = {name: getattr(case, name) for name in case.__dataclass_fields__}
    return Case(**{**fields, **changes})


def thousand_devices() -> dict[str, float]:
    """1,024 devices x 61 layers x 384 experts."""
    rng = np.random.default_rng(0)
    load = rng.lognormal(0, 1, (61, 384)) * 1000
    speed, slots = np.ones(1024), np.full(1024, 2)
    plan = plan_placement(load, speed, slots)
    seconds = figures.least_ms(lambda: plan_placement(load, speed, slots), 2) / 1e3
    return {"seconds": seconds, "planned / bound": plan.balancedness / plan.bound}


def rows_of(runs: Runs) -> list[dict[str, Any]]:
    """What was measured, as flat rows: one for each case and planner, then other figures."""
    columns = (
        "planned / bound", "next window", "2k batch", "2k batch, served",
        "2k batch, served, first plan", "full plan ms",
    )  # fmt: skip
    rows: list[dict[str, Any]] = []
    for name, row in runs.items():
        for planner in ("ours", "vLLM EPLB", "greedy EPLB"):
            if planner in row:
                rows.append(
                    {"case": name, "planner": planner}
                    | {column: row[planner].get(column, "-") for column in columns}
                )
    rows += [
        {"best possible / served, in time": name} | row["exact / served"]
        for name, row in runs.items()
        if "exact / served" in row
    ]
    return rows


def measure(arguments: argparse.Namespace) -> Report:
    runs: Runs = {}
    for case in cases(arguments.quick):
        runs[case.name] = run_case(case, arguments.quick)
        print(".", end="", flush=True)
    runs["1024 devices"] = thousand_devices()
    runs["choice µs"] = {
        f"{devices}": max(decode_micros(devices, kind) for kind in ("zipf", "lognormal"))
        for devices in DECODE_DEVICES
    }
    if arguments.plots:
        from benchmarks.planner_plots import draw_all

        draw_all(arguments.plots)
    notes = (
        "2k batch: the best split of 2,048 tokens on the plan of the window before; served: what "
        "dispatchers make of it; first plan: on one made without knowing any load",
        "balancedness counts tokens; best possible / served counts time: calls, weights read, rows",
    )
    return Report("planner", rows_of(runs), targets(runs), notes)


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--plots", type=Path, help="write plots of balancedness under drift here")


if __name__ == "__main__":
    run_benchmark(__doc__ or "", measure, options)
