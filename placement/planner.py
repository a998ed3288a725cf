"""Plans which expert lives where: the one entry point of this package.

Without a current placement, or with one and no move budget, every layer is planned from nothing.
With a budget the current placement is kept and at most that many copies per layer are loaded, on
top of those without which an expert would have no home at all.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from placement.bounds import balance_of, layer_bounds
from placement.full_plan import plan_layers
from placement.incremental import adapt_layers
from placement.split import split_layers, split_tokens
from placement.types import EMPTY, IntArray, Placement
from placement.validation import check_experts, check_load, check_slots, check_speed

__all__ = ["Placement", "plan_placement", "split_tokens"]

SHAKES = 2
"""Randomly changed loads that a full plan is judged by."""

SHAKE_SIGMA = 0.25
"""Their spread, in log tokens per expert: about that of a batch of 2,000 tokens."""


def plan_placement(
    load: ArrayLike,
    speed: ArrayLike,
    slots: ArrayLike,
    *,
    current: ArrayLike | None = None,
    max_moves_per_layer: int | None = None,
    domains: ArrayLike | None = None,
    seed: int = 0,
) -> Placement:
    """Places every expert on at least one device so that the slowest device is fastest.

    Args:
        load: float [L, E] tokens per expert, >= 0. A layer without any load is placed as if all
            its experts were equally busy.
        speed: float [D] relative speed, > 0.
        slots: int [D] or [L, D] experts a device can hold per layer.
        current: int [L, D, S'] what is loaded now, -1 for empty.
        max_moves_per_layer: copies to load per layer at most, beyond the unavoidable ones of
            experts that no device holds any more.
        domains: int [D] failure domain of each device.
        seed: draws the load changes a plan is judged by; equal input and seed give an equal plan.

    Returns:
        `Placement` with S = the largest number of slots.

    Raises:
        ValueError: NaN, negative or misshapen input, or fewer slots than experts.
    """
    tokens = check_load(load)
    rate = check_speed(speed)
    L, E = tokens.shape
    D = rate.shape[0]
    room = check_slots(slots, L, D, E)
    if max_moves_per_layer is not None and max_moves_per_layer < 0:
        raise ValueError(f"max_moves_per_layer = {max_moves_per_layer} is negative")
    if domains is not None and np.shape(domains) != (D,):
        raise ValueError(f"domains must have shape [{D}], got {np.shape(domains)}")
    old = None if current is None else check_experts(current, L, D, E, "current")
    weight = np.where(tokens.sum(axis=1, keepdims=True) > 0, tokens, 1.0)
    experts = np.full((L, D, int(room.max())), EMPTY, np.int32)
    offset = np.zeros(D)
    bounds = layer_bounds(weight, rate, room, offset)
    if old is not None and max_moves_per_layer is not None:
        adapt_layers(weight, rate, offset, room, bounds, old, max_moves_per_layer, 1, experts)
        reason = f"kept the current placement, at most {max_moves_per_layer} moves per layer"
    else:
        rng = np.random.default_rng(seed)
        shakes = np.exp(rng.normal(0.0, SHAKE_SIGMA, (SHAKES, E)))
        order = np.argsort(-weight, axis=1, kind="stable")
        plan_layers(weight, order, rate, offset, room, bounds, shakes, 1, experts)
        reason = "planned from nothing" if old is None else "planned anew: no move budget given"
    shares = split_layers(experts, tokens, rate, np.zeros(D))
    bounds = layer_bounds(tokens, rate, room)
    return Placement(
        experts=experts,
        shares=shares,
        moves=list_moves(experts, old),
        balance=balance_of(shares.sum(axis=2) / rate, tokens, rate),
        bound=float(tokens.sum() / rate.sum() / bounds.sum()) if tokens.any() else 1.0,
        reason=reason,
    )


def list_moves(experts: IntArray, current: IntArray | None) -> IntArray:
    """int32 [M, 4]: layer, device, slot, expert of each copy that `current` [L, D, S'] lacks."""
    filled = experts != EMPTY
    if current is not None:
        filled &= ~(experts[:, :, :, None] == current[:, :, None, :]).any(axis=3)
    where = np.argwhere(filled)
    return np.column_stack((where, experts[filled])).astype(np.int32)
