"""Plots of balancedness and copies over time, while loads drift and jump, for docs/placement.md."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np

from benchmarks.planner_baselines import evenly_split, plan_vllm, without_twins
from benchmarks.planner_workloads import Case, draw
from placement.planner import list_moves
from placement.policy.policies import decided, fixed, nudged, replanned
from placement.policy.simulate import simulate
from placement.search.bounds import balancedness
from placement.validation import check_problem

mpl.use("Agg")
import matplotlib.pyplot as plt

SERIES = {
    "never moved": ("#9aa0a6", "-"),
    "re-planned": ("#5f6bd6", "-"),
    "nudged": ("#0b8f6a", "-"),
    "decided": ("#d97706", "-"),
    "vLLM EPLB, re-planned": ("#c2334d", "--"),
}
"""Colour and line of each policy, the same in all plots."""


def draw_all(folder: Path) -> None:
    """Writes placement-drift-*.png and placement-jump-*.png."""
    folder.mkdir(parents=True, exist_ok=True)
    for group, speed in (("equal", np.ones(16)), ("unequal", np.repeat([1.0, 0.4], 8))):
        for name, swap_at in (("drift", None), ("jump", 8)):
            case = Case(
                name=f"{name} {group}",
                layers=24,
                experts=256,
                top_k=6,
                speed=speed,
                slots=np.full(16, 17),
                kind="lognormal",
                windows=24,
                batches=4,
                swap_at=swap_at,
            )
            _plot(case, folder / f"placement-{name}-{group}.png")


def _plot(case: Case, path: Path) -> None:
    counts = draw(case).sum(axis=1)
    runs = simulate(
        counts,
        case.speed,
        case.slots,
        {"never moved": fixed, "re-planned": replanned, "nudged": nudged, "decided": decided},
    )
    lines = {name: (run.balancedness, run.moves / case.layers) for name, run in runs.items()}
    if (peer := _vllm(case, counts)) is not None:
        lines["vLLM EPLB, re-planned"] = peer
    figure, (upper, lower) = plt.subplots(
        2, 1, figsize=(8, 6), sharex=True, height_ratios=(3, 2), layout="constrained"
    )
    windows = np.arange(1, counts.shape[0])
    for name, (reached, copies) in lines.items():
        colour, style = SERIES[name]
        label = f"{name} (mean {reached.mean():.3f}, {copies.mean():.1f} copies)"
        upper.plot(windows, reached, style, color=colour, lw=1.8, label=label)
        lower.plot(windows, np.maximum(copies, 0.1), style, color=colour, lw=1.8)
    speeds = "16 equal devices" if np.ptp(case.speed) == 0 else "8 devices of speed 1.0, 8 of 0.4"
    what = "steady drift"
    if case.swap_at is not None:
        what = f"30 % of the experts swap popularity in window {case.swap_at}"
    upper.set_title(f"{what}, {speeds}", loc="left", fontsize=11)
    upper.set_ylabel("balancedness (1 is perfect)")
    upper.set_ylim(top=1.005)
    figure.legend(loc="outside lower center", ncols=2, fontsize=9, frameon=False)
    lower.set_yscale("log")
    lower.set_ylabel("copies per layer")
    lower.set_yticks([0.1, 1, 10, 100], ["none", "1", "10", "100"])
    lower.set_xlabel("window")
    for axis in (upper, lower):
        axis.grid(alpha=0.25, lw=0.6)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _vllm(case: Case, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """(balancedness, copies per layer) of vLLM's policy planning anew in every window."""
    placed = plan_vllm(counts[0].astype(float), case.slots)
    if placed is None:
        return None
    reached, copies = [], []
    copied = 0
    for window in counts[1:].astype(float):
        times = evenly_split(placed, window) / case.speed
        reached.append(balancedness(times, check_problem(window, case.speed)))
        copies.append(copied)
        following = plan_vllm(window, case.slots)
        assert following is not None
        copied = len(list_moves(without_twins(following), without_twins(placed)))
        placed = following
    return np.array(reached), np.array(copies) / case.layers
