"""Replays recorded expert counts through policies: balancedness, moves and bytes of each.

In each window the placement decided on earlier counts serves, with tokens split on the window's
true counts, as the dispatcher does; then the policy sees these counts and may change the placement
for the next window. So no policy knows the future, and the first window only serves to plan.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from placement.planner import list_moves
from placement.policy.decision import Action
from placement.policy.load_model import LoadModel
from placement.policy.policies import POLICIES, Policy, Situation
from placement.search.bounds import balancedness
from placement.search.split import split_tokens
from placement.types import EMPTY, FloatArray, IntArray
from placement.validation import check_problem, check_speed


@dataclass(frozen=True, slots=True)
class Replay:
    """One policy's run over a trace of T windows."""

    balancedness: FloatArray
    """[T - 1] of each window but the first."""
    moves: NDArray[np.int64]
    """[T - 1] copies loaded before each of these windows; the first loading does not count."""
    bytes: NDArray[np.int64]
    """[T - 1] bytes of these copies."""
    times: FloatArray
    """[T - 1, D] load over speed of each device in each of these windows, summed over layers."""
    copies: NDArray[np.uint8]
    """[T - 1, L, E] copies of each expert in each of these windows; 255 stands for more too."""


def simulate(
    counts: ArrayLike,
    speed: ArrayLike,
    slots: ArrayLike,
    policies: Mapping[str, Policy] = POLICIES,
    expert_bytes: int = 1,
) -> dict[str, Replay]:
    """Replays counts [T, L, E] on devices of speed [D] with slots [D] or [L, D] under each policy.

    Raises:
        ValueError: fewer than two windows, or a policy whose placement lacks an expert.
    """
    windows = np.asarray(counts, np.float64)
    if windows.ndim != 3 or windows.shape[0] < 2:
        raise ValueError(
            f"simulate needs counts [windows >= 2, layers, experts], got {windows.shape}"
        )
    checked, room = check_speed(speed), np.asarray(slots)
    return {
        name: _replay(windows, checked, room, policy, expert_bytes)
        for name, policy in policies.items()
    }


def _replay(
    windows: FloatArray,
    speed: FloatArray,
    slots: NDArray[np.int64],
    policy: Policy,
    expert_bytes: int,
) -> Replay:
    placed: IntArray | None = None
    planned_load: FloatArray | None = None
    model = LoadModel()
    found, moves, times, copies = [], [], [], []
    copied = 0
    for window in windows:
        if placed is not None:
            shares = split_tokens(placed, window, speed)
            spent = shares.sum(axis=2) / speed
            found.append(balancedness(spent, check_problem(window, speed)))
            moves.append(copied)
            times.append(spent.sum(axis=0))
            copies.append(_copies(placed, window.shape[1]))
        model = model.observe(window)
        load = model.forecast()
        step = policy(Situation(load, speed, slots, placed, planned_load, window))
        copied = 0
        if step.placement is not None:
            # Nudges do not count: what they patched up is still a plan for the load back then.
            planned_load = load if step.action is Action.REPLAN else planned_load
            copied = 0 if placed is None else len(list_moves(step.placement.experts, placed))
            placed = step.placement.experts
    loaded = np.array(moves, np.int64)
    return Replay(np.array(found), loaded, loaded * expert_bytes, np.array(times), np.array(copies))


def _copies(placed: IntArray, experts: int) -> NDArray[np.uint8]:
    """[L, E] of a placement [L, D, S]."""
    counted = [np.bincount(row[row != EMPTY], minlength=experts) for row in placed]
    return np.minimum(counted, 255).astype(np.uint8)
