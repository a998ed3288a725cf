"""Checks planner input at the edge, so that the kernels behind it may trust their arrays.

Every rejection is a `ValueError` whose text names the argument, the place and the limit it broke.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from placement.problem import Problem
from placement.types import EMPTY, FloatArray, IntArray


def check_problem(
    load: ArrayLike,
    speed: ArrayLike,
    slots: ArrayLike | None = None,
    *,
    offset: ArrayLike | None = None,
    failure_domains: ArrayLike | None = None,
    min_copies: int = 1,
    name: str = "load",
) -> Problem:
    """A `Problem` from a caller's arrays; see `planner.plan_placement`.

    slots: None where nothing is to be placed, which leaves them 0. name: of `load`, in refusals.

    Raises:
        ValueError: NaN, negative or misshapen input, or too few slots.
    """
    tokens = check_load(load, name)
    checked = check_speed(speed)
    L, E = tokens.shape
    D = checked.shape[0]
    none = np.zeros((L, D), np.int64)
    return Problem(
        load=tokens,
        speed=checked,
        offset=check_offset(offset, D),
        slots=none if slots is None else check_slots(slots, L, D, E, min_copies),
        failure_domain=check_failure_domains(failure_domains, D),
        bound=np.zeros(L),
        min_copies=min_copies,
    )


def check_load(load: ArrayLike, name: str = "load") -> FloatArray:
    """Returns `load` as contiguous float64 [L, E]; rejects NaN, infinite, negative, wrong shape."""
    array = np.ascontiguousarray(load, dtype=np.float64)
    if array.ndim != 2 or array.shape[0] == 0 or array.shape[1] == 0:
        raise ValueError(f"{name} must have shape [layers, experts], got {array.shape}")
    _reject(array, ~np.isfinite(array), name, "is not finite")
    _reject(array, array < 0, name, "is negative")
    return array


def check_speed(speed: ArrayLike) -> FloatArray:
    """Returns `speed` as contiguous float64 [D], all positive and finite."""
    array = np.ascontiguousarray(speed, dtype=np.float64)
    if array.ndim != 1 or array.shape[0] == 0:
        raise ValueError(f"speed must have shape [devices], got {array.shape}")
    _reject(array, ~(np.isfinite(array) & (array > 0)), "speed", "must be positive and finite")
    return array


def check_slots(
    slots: ArrayLike, layers: int, devices: int, experts: int, min_copies: int = 1
) -> NDArray[np.int64]:
    """Returns slots as int64 [L, D], each at most `experts` (a device holds an expert once).

    Raises `ValueError` for fractions, negatives, wrong shape, or too few slots for `min_copies` of
    each expert on different devices.
    """
    if min_copies < 1:
        raise ValueError(f"min_copies = {min_copies} must be at least 1")
    raw = np.asarray(slots)
    if raw.shape not in ((devices,), (layers, devices)):
        raise ValueError(
            f"slots must have shape [{devices}] or [{layers}, {devices}] "
            f"(devices as in speed, layers as in load), got {raw.shape}"
        )
    if not np.issubdtype(raw.dtype, np.integer):
        raise ValueError(f"slots must be integers, got {raw.dtype}")
    array = np.broadcast_to(raw, (layers, devices)).astype(np.int64)
    _reject(array, array < 0, "slots", "is negative")
    array = np.ascontiguousarray(np.minimum(array, experts))
    have = array.sum(axis=1)
    short = np.flatnonzero(have < experts * min_copies)
    if short.size:
        layer = int(short[0])
        each = f" in {min_copies} copies each" if min_copies > 1 else ""
        raise ValueError(
            f"too little memory: layer {layer} has {int(have[layer])} slots on {devices} devices "
            f"for {experts} experts{each}; add devices or slots"
        )
    return array


def check_budget(budget: int | None) -> int | None:
    """Returns a move budget; rejects negative ones."""
    if budget is not None and budget < 0:
        raise ValueError(f"max_moves_per_layer = {budget} is negative")
    return budget


def check_offset(offset: ArrayLike | None, devices: int) -> FloatArray:
    """Returns each device's constant cost as float64 [D]; zeros for None."""
    if offset is None:
        return np.zeros(devices)
    array = np.ascontiguousarray(offset, dtype=np.float64)
    if array.shape != (devices,):
        raise ValueError(f"offset must have shape [{devices}], got {array.shape}")
    _reject(array, ~np.isfinite(array) | (array < 0), "offset", "must be finite and >= 0")
    return array


def number_domains(names: Sequence[str]) -> NDArray[np.int64] | None:
    """int64 [D] failure domains of devices, given by their names; None where nothing is to be kept
    apart: all devices are in one, or each in its own."""
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    if len(numbers) in (1, len(names)):
        return None
    return np.array([numbers[name] for name in names], np.int64)


def check_failure_domains(domains: ArrayLike | None, devices: int) -> NDArray[np.int64]:
    """Returns failure domains as int64 [D]; every device its own for None."""
    if domains is None:
        return np.arange(devices)
    raw = np.asarray(domains)
    if raw.shape != (devices,) or not np.issubdtype(raw.dtype, np.integer):
        raise ValueError(f"failure_domains must be integers of shape [{devices}], got {raw.shape}")
    return raw.astype(np.int64)


def check_experts(
    experts: ArrayLike, layers: int, devices: int | None, n_experts: int, name: str
) -> IntArray:
    """Returns a placement as contiguous int32 [L, D, S] with ids in [-1, n_experts).

    A device that lists one expert twice in a layer is rejected.
    """
    raw = np.asarray(experts)
    if raw.ndim != 3 or raw.shape[0] != layers or devices not in (None, raw.shape[1]):
        wanted = f"[{layers}, {'devices' if devices is None else devices}, slots]"
        raise ValueError(f"{name} must have shape {wanted}, got {raw.shape}")
    if not np.issubdtype(raw.dtype, np.integer):
        raise ValueError(f"{name} must be integers, got {raw.dtype}")
    _reject(raw, (raw < EMPTY) | (raw >= n_experts), name, f"is not in [-1, {n_experts})")
    array = np.ascontiguousarray(raw, dtype=np.int32)
    ordered = np.sort(array, axis=2)
    twice = (ordered[:, :, 1:] == ordered[:, :, :-1]) & (ordered[:, :, 1:] != EMPTY)
    if twice.any():
        layer, device, slot = (int(i) for i in np.argwhere(twice)[0])
        raise ValueError(
            f"{name}: layer {layer}, device {device} lists expert "
            f"{int(ordered[layer, device, slot])} twice"
        )
    return array


def _reject(array: NDArray, bad: NDArray[np.bool_], name: str, what: str) -> None:
    if bad.any():
        where = tuple(int(i) for i in np.argwhere(bad)[0])
        index = ", ".join(str(i) for i in where)
        raise ValueError(f"{name}[{index}] = {array[where]} {what}")
