"""Plans very many devices in two levels: groups of devices first, then inside each group.

A group is planned as one device with the speed of all its members. It holds an expert at most once
at that level; how many copies that takes is settled inside. So a thousand devices cost about as
much as a few dozen plans of a few dozen devices. Groups take devices in turn by falling speed, so
they are alike, and prefer different failure domains inside over whole domains per group.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from placement.types import EMPTY, FloatArray, IntArray

GROUP_DEVICES = 32
"""Devices per group: where planning one layer is fastest per device."""

OUTER_SHARE = 0.6
"""Most of a group's slots spent on different experts; the others are copies inside the group, one
per device at least, so that replicas can join its devices."""

Planner = Callable[[FloatArray, FloatArray, NDArray[np.int64]], tuple[IntArray, FloatArray]]
"""(load [L, E], speed [D], slots [L, D]) of one level -> experts [L, D, S], shares [L, D, S]."""


def plan_by_groups(
    load: FloatArray, speed: FloatArray, slots: NDArray[np.int64], plan: Planner
) -> IntArray:
    """int32 [L, D, S] placement of load [L, E] on speed [D], slots [L, D], planned by `plan`."""
    L, E = load.shape
    D = speed.shape[0]
    experts = np.full((L, D, int(slots.max())), EMPTY, np.int32)
    groups = group_devices(speed, slots)
    group_slots = np.stack([slots[:, g].sum(axis=1) for g in groups], axis=1)
    outer_slots = _outer_slots(group_slots, np.array([len(g) for g in groups]), E)
    group_speed = np.array([speed[g].sum() for g in groups])
    outer, shares = plan(load, group_speed, outer_slots)
    for index, members in enumerate(groups):
        for width in np.unique(outer_slots[:, index]):
            layers = np.flatnonzero(outer_slots[:, index] == width)
            ids = outer[layers, index, :width]
            inner, _ = plan(
                np.ascontiguousarray(shares[layers, index, :width]),
                speed[members],
                np.ascontiguousarray(np.minimum(slots[np.ix_(layers, members)], width)),
            )
            named = np.take_along_axis(ids, np.maximum(inner, 0).reshape(len(layers), -1), axis=1)
            named = np.where(inner == EMPTY, EMPTY, named.reshape(inner.shape))
            for layer, rows in zip(layers, named, strict=True):
                experts[layer, members, : rows.shape[1]] = rows
    return experts


def group_devices(speed: FloatArray, slots: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Deals devices out, most capable first, to groups of about `GROUP_DEVICES`."""
    n = max(1, -(-speed.shape[0] // GROUP_DEVICES))
    order = np.lexsort((-slots.sum(axis=0), -speed))
    rank = np.arange(order.shape[0])
    turn = np.where((rank // n) % 2 == 0, rank % n, n - 1 - rank % n)
    return [np.sort(order[turn == g]) for g in range(n)]


def _outer_slots(
    group_slots: NDArray[np.int64], group_size: NDArray[np.int64], experts: int
) -> NDArray[np.int64]:
    """Slots for different experts per group [L, G]: enough for all experts, room left inside."""
    wanted = np.minimum((group_slots * OUTER_SHARE).astype(np.int64), group_slots - group_size)
    wanted = np.minimum(np.maximum(wanted, np.minimum(group_slots, 1)), experts)
    full = np.minimum(group_slots, experts)
    for row, limit in zip(wanted, full, strict=True):
        while row.sum() < experts:
            row[np.argmax(limit - row)] += 1
    return wanted
