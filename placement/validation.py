"""Checks planner input at the edge, so that the kernels behind it may trust their arrays.

Every rejection is a `ValueError` whose text names the argument, the place and the limit it broke.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from placement.types import EMPTY, FloatArray, IntArray


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


def check_slots(slots: ArrayLike, layers: int, devices: int, experts: int) -> NDArray[np.int64]:
    """Returns slots as int64 [L, D], each at most `experts` (a device holds an expert once).

    Raises `ValueError` for fractions, negatives, wrong shape, or too few slots for one copy each.
    """
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
    room = array.sum(axis=1)
    short = np.flatnonzero(room < experts)
    if short.size:
        layer = int(short[0])
        raise ValueError(
            f"too little memory: layer {layer} has {int(room[layer])} slots on {devices} devices "
            f"for {experts} experts; add devices or slots"
        )
    return array


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
