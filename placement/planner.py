"""Plans which expert lives where: the entry point of this package.

Without a current placement, or with one and no move budget, every layer is planned from nothing
(`full_plan`). With a budget the current placement is kept and only changed where it pays
(`incremental`). More devices than `FLAT_DEVICES` are planned by groups (`hierarchy`).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from placement.search.align import align_layers
from placement.search.bounds import balance_of, layer_bounds
from placement.search.failure_domains import part_layers
from placement.search.full_plan import UNLIMITED, Problem, plan_layers
from placement.search.hierarchy import plan_by_groups
from placement.search.incremental import adapt_layers
from placement.search.split import split_layers, split_tokens
from placement.types import EMPTY, FloatArray, IntArray, Placement
from placement.validation import (
    check_budget,
    check_domains,
    check_experts,
    check_load,
    check_offset,
    check_slots,
    check_speed,
)

__all__ = ["Placement", "plan_placement", "split_tokens"]

SHAKES = 1
"""Randomly changed loads by which a full plan chooses among constructions."""

SHAKE_SIGMA = 0.25
"""Their spread, in log tokens per expert: about that of a batch of 2,000 tokens."""

FLAT_DEVICES = 256
"""Devices planned in one level; more are planned by groups."""


def plan_placement(
    load: ArrayLike,
    speed: ArrayLike,
    slots: ArrayLike,
    *,
    current: ArrayLike | None = None,
    max_moves_per_layer: int | None = None,
    domains: ArrayLike | None = None,
    seed: int = 0,
    offset: ArrayLike | None = None,
    min_copies: int = 1,
) -> Placement:
    """Places every expert so that the slowest device is as fast as can be.

    Args:
        load: float [L, E] tokens per expert, >= 0. A layer without any load is placed as if all
            its experts were equally busy.
        speed: float [D] relative speed, > 0.
        slots: int [D] or [L, D] experts a device can hold per layer.
        current: int [L, D, S'] what is loaded now, -1 for empty; a device that joins has -1 only.
        max_moves_per_layer: copies to load per layer at most, beyond the unavoidable ones of
            experts that are left with fewer than `min_copies` devices. None: plan anew.
        domains: int [D] failure domain of each device; an expert's two hottest replicas are kept
            apart where slots and the move budget allow.
        seed: draws the load changes a plan is judged by; equal input and seed give an equal plan.
        offset: float [D] constant cost of each device per layer, in tokens (see `cost_model`).
        min_copies: devices every expert must live on; 2 survives the loss of any one device.

    Returns:
        `Placement` with S = the largest number of slots.

    Raises:
        ValueError: NaN, negative or misshapen input, or too few slots.
    """
    tokens = check_load(load)
    rate = check_speed(speed)
    L, E = tokens.shape
    D = rate.shape[0]
    room = check_slots(slots, L, D, E, min_copies)
    budget = check_budget(max_moves_per_layer)
    constant = check_offset(offset, D)
    domain = check_domains(domains, D)
    old = None if current is None else check_experts(current, L, D, E, "current")
    weight = np.where(tokens.sum(axis=1, keepdims=True) > 0, tokens, 1.0)
    bounds = layer_bounds(weight, rate, room, constant)
    if old is not None and budget is not None:
        experts, forced = adapt_layers(
            weight, rate, constant, room, bounds, old, budget, min_copies
        )
        reason = f"kept the current placement and changed at most {budget} copies per layer"
        if forced.any():
            reason += f"; {int(forced.sum())} more for experts left without a device"
        allowed = forced + budget - _moves_per_layer(experts, old)
    else:
        shakes = np.exp(np.random.default_rng(seed).normal(0.0, SHAKE_SIGMA, (SHAKES, E)))
        experts = _plan_anew(
            Problem(weight, rate, constant, room, bounds, domain, shakes, min_copies)
        )
        reason = "planned from nothing" if old is None else "planned anew: no move budget given"
        allowed = np.full(L, UNLIMITED)
    if domains is not None:
        part_layers(weight, rate, constant, room, domain, allowed, experts)
    if old is not None and budget is None:
        align_layers(old, experts)
    shares = split_layers(experts, tokens, rate, constant)
    return Placement(
        experts=experts,
        shares=shares,
        moves=list_moves(experts, old),
        balance=balance_of((shares.sum(axis=2) + constant) / rate, tokens, rate, constant),
        bound=_ceiling(tokens, rate, room, constant),
        reason=reason,
    )


def list_moves(experts: IntArray, current: IntArray | None) -> IntArray:
    """int32 [M, 4]: layer, device, slot, expert of each copy that `current` [L, D, S'] lacks."""
    filled = experts != EMPTY
    if current is not None:
        for slot in range(current.shape[2]):
            filled &= experts != current[:, :, slot : slot + 1]
    where = np.argwhere(filled)
    return np.column_stack((where, experts[filled])).astype(np.int32)


def _moves_per_layer(experts: IntArray, current: IntArray) -> NDArray[np.int64]:
    moves = list_moves(experts, current)
    return np.bincount(moves[:, 0], minlength=experts.shape[0])


def _plan_anew(whole: Problem) -> IntArray:
    """Plans flat, or by groups where there are too many devices for that."""
    if whole.speed.shape[0] <= FLAT_DEVICES or whole.least_copies > 1:
        return plan_layers(whole)

    def plan_part(
        load: FloatArray, speed: FloatArray, slots: NDArray[np.int64]
    ) -> tuple[IntArray, FloatArray]:
        offset = np.zeros(speed.shape[0])
        weight = np.where(load.sum(axis=1, keepdims=True) > 0, load, 1.0)
        part = Problem(
            load=weight,
            speed=speed,
            offset=offset,
            slots=slots,
            bound=layer_bounds(weight, speed, slots),
            domain=np.arange(speed.shape[0]),
            shakes=np.ascontiguousarray(whole.shakes[:, : load.shape[1]]),
            least_copies=1,
        )
        experts = plan_layers(part)
        return experts, split_layers(experts, load, speed, offset)

    return plan_by_groups(whole.load, whole.speed, whole.slots, plan_part)


def _ceiling(
    tokens: FloatArray, rate: FloatArray, room: NDArray[np.int64], constant: FloatArray
) -> float:
    """The largest balance that any placement could have."""
    bounds = layer_bounds(tokens, rate, room, constant)
    total = tokens.sum() + constant.sum() * tokens.shape[0]
    return float(total / rate.sum() / bounds.sum()) if bounds.any() else 1.0
