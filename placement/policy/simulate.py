"""Replays recorded expert counts through policies: what balance, moves and bytes each would give.

In each window the placement decided on earlier counts serves, with tokens split on the window's
true counts, as the dispatcher does; then the policy sees these counts and may change the placement
for the next window. So no policy knows the future, and the first window only serves to plan.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from placement.planner import list_moves, plan_placement
from placement.policy.decision import Action, decide
from placement.policy.load_model import LoadModel
from placement.search.bounds import balance_of
from placement.search.split import split_tokens
from placement.types import FloatArray, IntArray
from placement.validation import check_speed


class Policy(Protocol):
    """Decides the next placement; keeps what it has learned to itself."""

    def __call__(self, counts: FloatArray, current: IntArray | None) -> IntArray:
        """Next placement [L, D, S], from a window's counts [L, E] and what is loaded."""
        ...


@dataclass(frozen=True, slots=True)
class Replay:
    """One policy's run over a trace of T windows."""

    balance: FloatArray
    """[T - 1] balance of each window but the first."""
    moves: NDArray[np.int64]
    """[T - 1] copies loaded before each of these windows; the first loading does not count."""
    bytes: NDArray[np.int64]
    """[T - 1] bytes of these copies."""


def simulate(
    counts: ArrayLike,
    speed: ArrayLike,
    policies: Mapping[str, Policy],
    expert_bytes: int = 1,
) -> dict[str, Replay]:
    """Replays counts [T, L, E] on devices of speed [D] under each policy.

    Raises:
        ValueError: fewer than two windows, or a policy whose placement lacks an expert.
    """
    windows = np.asarray(counts, np.float64)
    rate = check_speed(speed)
    if windows.ndim != 3 or windows.shape[0] < 2:
        raise ValueError(
            f"simulate needs counts [windows >= 2, layers, experts], got {windows.shape}"
        )
    return {name: _replay(windows, rate, policy, expert_bytes) for name, policy in policies.items()}


def _replay(windows: FloatArray, speed: FloatArray, policy: Policy, expert_bytes: int) -> Replay:
    placed = policy(windows[0], None)
    balance, moves = [], []
    copied = 0
    for window in windows[1:]:
        shares = split_tokens(placed, window, speed)
        balance.append(balance_of(shares.sum(axis=2) / speed, window, speed))
        moves.append(copied)
        following = policy(window, placed)
        copied = len(list_moves(following, placed))
        placed = following
    loaded = np.array(moves, np.int64)
    return Replay(np.array(balance), loaded, loaded * expert_bytes)


@dataclass
class Fixed:
    """Plans once and never again."""

    speed: ArrayLike
    slots: ArrayLike

    def __call__(self, counts: FloatArray, current: IntArray | None) -> IntArray:
        if current is not None:
            return current
        return plan_placement(counts, self.speed, self.slots).experts


@dataclass
class Replanned:
    """Plans anew from every window's counts."""

    speed: ArrayLike
    slots: ArrayLike

    def __call__(self, counts: FloatArray, current: IntArray | None) -> IntArray:
        return plan_placement(counts, self.speed, self.slots, current=current).experts


@dataclass
class Nudged:
    """Changes at most `max_moves_per_layer` copies per layer in every window."""

    speed: ArrayLike
    slots: ArrayLike
    max_moves_per_layer: int = 3

    def __call__(self, counts: FloatArray, current: IntArray | None) -> IntArray:
        return plan_placement(
            counts,
            self.speed,
            self.slots,
            current=current,
            max_moves_per_layer=self.max_moves_per_layer,
        ).experts


@dataclass
class Decided:
    """Forecasts with a load model; keeps, nudges or re-plans as `decision.decide` says."""

    speed: ArrayLike
    slots: ArrayLike
    max_moves_per_layer: int = 3

    def __post_init__(self) -> None:
        self._model = LoadModel()
        self._planned: FloatArray | None = None

    def __call__(self, counts: FloatArray, current: IntArray | None) -> IntArray:
        self._model = self._model.observe(counts)
        load = self._model.forecast()
        action = Action.REPLAN
        if current is not None and self._planned is not None:
            action = decide(load, self._planned, current, self.speed, self.slots).action
        if action is Action.KEEP and current is not None:
            return current
        budget = None
        if action is Action.NUDGE:
            budget = self.max_moves_per_layer
        else:
            # Nudges do not count: what they patched up is still a plan for the load back then.
            self._planned = load
        return plan_placement(
            load, self.speed, self.slots, current=current, max_moves_per_layer=budget
        ).experts
