"""Plans which expert lives where: the entry point of this package.

Without a current placement, or with one and no move budget, every layer is planned from nothing
(`full_plan`). With a budget the current placement is kept and only changed where it pays
(`incremental`). More devices than `FLAT_DEVICES` are planned by groups (`hierarchy`).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from placement.problem import Problem
from placement.search.align import align_layers
from placement.search.bounds import balancedness, layer_bounds
from placement.search.failure_domains import part_layers
from placement.search.full_plan import UNLIMITED, plan_layers
from placement.search.hierarchy import plan_by_groups
from placement.search.incremental import adapt_layers
from placement.search.split import split_layers, split_tokens
from placement.types import EMPTY, FloatArray, IntArray, Placement
from placement.validation import check_budget, check_experts, check_problem

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
    failure_domains: ArrayLike | None = None,
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
        failure_domains: int [D] failure domain of each device; an expert's two hottest
            replicas are kept apart where slots and the move budget allow. With two copies of
            each, and no domain with room for more than one of each, none has both in one domain.
        seed: draws the load changes a plan is judged by; equal input and seed give an equal plan.
        offset: float [D] constant cost of each device per layer, in tokens (see `cost_model`).
        min_copies: devices every expert must live on; 2 survives the loss of any one device.

    Returns:
        `Placement` with S = the largest number of slots.

    Raises:
        ValueError: NaN, negative or misshapen input, or too few slots.
    """
    asked = check_problem(
        load,
        speed,
        slots,
        offset=offset,
        failure_domains=failure_domains,
        min_copies=min_copies,
    )
    L, E = asked.load.shape
    budget = check_budget(max_moves_per_layer)
    old = None if current is None else check_experts(current, L, asked.devices, E, "current")
    problem = _with_bound(asked)
    if old is not None and budget is not None:
        experts, forced = adapt_layers(problem, old, budget)
        reason = f"kept the current placement and changed at most {budget} copies per layer"
        if forced.any():
            reason += f"; {int(forced.sum())} more for experts left without a device"
        allowed = forced + budget - _moves_per_layer(experts, old)
    else:
        shakes = np.exp(np.random.default_rng(seed).normal(0.0, SHAKE_SIGMA, (SHAKES, E)))
        experts = _plan_anew(problem, shakes)
        reason = "planned from nothing" if old is None else "planned anew: no move budget given"
        allowed = np.full(L, UNLIMITED)
    if failure_domains is not None:
        part_layers(problem, allowed, experts)
    if old is not None and budget is None:
        align_layers(old, experts)
    shares = split_layers(experts, asked)
    times = (shares.sum(axis=2) + asked.offset) / asked.speed
    return Placement(
        experts=experts,
        shares=shares,
        moves=list_moves(experts, old),
        balancedness=balancedness(times, asked),
        bound=_ceiling(asked),
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


def _with_bound(p: Problem) -> Problem:
    """The problem as the search takes it: layers without load count as evenly loaded."""
    loaded = p.load.sum(axis=1, keepdims=True) > 0
    weighed = p._replace(load=np.where(loaded, p.load, 1.0))
    return weighed._replace(bound=layer_bounds(weighed))


def _plan_anew(whole: Problem, shakes: FloatArray) -> IntArray:
    """Plans flat, or by groups where there are too many devices for that."""
    if whole.devices <= FLAT_DEVICES or whole.min_copies > 1:
        return plan_layers(whole, shakes)

    def plan_part(
        load: FloatArray, speed: FloatArray, slots: NDArray[np.int64]
    ) -> tuple[IntArray, FloatArray]:
        part = Problem(
            load=load,
            speed=speed,
            offset=np.zeros(speed.shape[0]),
            slots=slots,
            failure_domain=np.arange(speed.shape[0]),
            bound=np.zeros(load.shape[0]),
            min_copies=1,
        )
        experts = plan_layers(_with_bound(part), np.ascontiguousarray(shakes[:, : load.shape[1]]))
        return experts, split_layers(experts, part)

    return plan_by_groups(whole.load, whole.speed, whole.slots, plan_part)


def _ceiling(p: Problem) -> float:
    """The largest balancedness that any placement could have."""
    bounds = layer_bounds(p)
    total = p.load.sum() + p.offset.sum() * p.load.shape[0]
    return float(total / p.speed.sum() / bounds.sum()) if bounds.any() else 1.0
