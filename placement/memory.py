"""Turns bytes into slots: how many experts of each layer a device holds, within its memory.

First every layer gets room for each expert once, spread over devices in proportion to their memory.
What is left buys redundant slots one by one, each for the layer where it helps most per byte. The
gain of a further copy of an expert of w tokens with c copies is w^2 / (c (c + 1)): that much falls
sum(w^2 / c), a measure of how lumpy a layer's load still is. The slot goes to the device with most
memory left.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from placement.types import FloatArray
from placement.validation import check_load


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Slots per layer and device, and what they leave free."""

    slots: NDArray[np.int64]
    """[L, D] experts a device holds of a layer; what `plan_placement` takes."""

    spare_bytes: NDArray[np.int64]
    """[D] memory no slot fits into any more."""

    redundant: NDArray[np.int64]
    """[L] slots beyond `min_copies` per expert."""

    survival_bytes: int
    """Memory still missing for every expert to live on two devices; 0 if there is enough."""

    reason: str
    """What was decided, in one line for people."""


def plan_memory(
    load: ArrayLike,
    expert_bytes: ArrayLike,
    device_bytes: ArrayLike,
    *,
    min_copies: int = 1,
    max_redundant_per_layer: int | None = None,
) -> MemoryPlan:
    """Shares the devices' memory out over layers.

    Args:
        load: float [L, E] tokens per expert, what redundant slots are judged by.
        expert_bytes: int scalar or [L], weights of one expert of a layer.
        device_bytes: int [D] memory for experts; leave staging out of it.
        min_copies: devices every expert must live on; 2 survives the loss of any one device.
        max_redundant_per_layer: redundant slots per layer at most; None: as many as fit.

    Returns:
        `MemoryPlan`.

    Raises:
        ValueError: bad shapes, or too little memory, with the bytes that are missing.
    """
    tokens = check_load(load)
    L, E = tokens.shape
    size = np.broadcast_to(_whole(expert_bytes, "expert_bytes", 1), (L,))
    left = np.array(_whole(device_bytes, "device_bytes", 0), ndmin=1)
    D = left.shape[0]
    if not 1 <= min_copies <= D:
        raise ValueError(f"min_copies = {min_copies} must be between 1 and the {D} devices")
    needed = int(size.sum()) * E * min_copies
    total = int(left.sum())
    if total < needed:
        raise ValueError(
            f"too little memory: {E} experts in {L} layers, {min_copies} each, take {needed} "
            f"bytes; the devices have {total}, {needed - total} less"
        )
    two_each = int(size.sum()) * E * 2
    slots = _house_all(left, size, E, min_copies)
    limit = E * D if max_redundant_per_layer is None else max_redundant_per_layer
    redundant = _spend_spare(tokens, left, size, slots, min_copies, limit)
    reason = (
        f"{int(redundant.sum())} redundant slots, {int(redundant.min())} to "
        f"{int(redundant.max())} per layer; {int(left.sum())} bytes left"
    )
    return MemoryPlan(slots, left, redundant, max(0, two_each - total) if D > 1 else 0, reason)


def _house_all(
    left: NDArray[np.int64], size: NDArray[np.int64], experts: int, copies: int
) -> NDArray[np.int64]:
    """[L, D] slots for every expert `copies` times; takes their bytes off `left`."""
    slots = np.zeros((size.shape[0], left.shape[0]), np.int64)
    part = left / max(int(left.sum()), 1)
    # Largest experts first: small ones still fit into what rounding leaves over.
    for layer in np.argsort(-size, kind="stable"):
        fits = np.minimum((experts * copies * part).astype(np.int64), experts)
        slots[layer] = np.minimum(fits, left // size[layer])
        left -= slots[layer] * size[layer]
    for layer in np.argsort(-size, kind="stable"):
        for _ in range(experts * copies - int(slots[layer].sum())):
            device = _roomiest(left, slots[layer], experts)
            if device < 0 or left[device] < size[layer]:
                raise ValueError(
                    f"too little memory: no device that lacks an expert of layer {int(layer)} "
                    f"has {int(size[layer])} bytes left for it; it is spread too unevenly"
                )
            slots[layer, device] += 1
            left[device] -= size[layer]
    return slots


def _spend_spare(
    tokens: FloatArray,
    left: NDArray[np.int64],
    size: NDArray[np.int64],
    slots: NDArray[np.int64],
    min_copies: int,
    limit: int,
) -> NDArray[np.int64]:
    """Adds redundant slots to `slots` while memory lasts; returns [L] how many."""
    L, E = tokens.shape
    D = left.shape[0]
    total = np.maximum(tokens.sum(axis=1), 1.0)
    share = tokens / total[:, None]
    copies = np.full((L, E), min_copies)
    spent = np.zeros(L, np.int64)

    def offer(layer: int) -> tuple[float, int, int, int]:
        gain = np.where(
            copies[layer] < D, share[layer] ** 2 / (copies[layer] * (copies[layer] + 1)), -1.0
        )
        expert = int(gain.argmax())
        # Layers count by their tokens: a busy layer's imbalance costs more.
        value = -float(gain[expert]) * float(total[layer]) / float(size[layer])
        # Of layers that gain equally, the one with fewest redundant slots is first.
        return value, int(spent[layer]), layer, expert

    queue = [offer(layer) for layer in range(L)]
    heapq.heapify(queue)
    while queue:
        value, _, layer, expert = heapq.heappop(queue)
        device = _roomiest(left, slots[layer], E)
        if value > 0 or spent[layer] >= limit or device < 0 or left[device] < size[layer]:
            continue
        slots[layer, device] += 1
        left[device] -= size[layer]
        spent[layer] += 1
        copies[layer, expert] += 1
        heapq.heappush(queue, offer(layer))
    return spent


def _roomiest(left: NDArray[np.int64], slots: NDArray[np.int64], experts: int) -> int:
    """Device with most memory left that lacks some expert of the layer; -1 for none."""
    room = np.where(slots < experts, left, -1)
    device = int(room.argmax())
    return device if room[device] >= 0 else -1


def _whole(values: ArrayLike, name: str, least: int) -> NDArray[np.int64]:
    array = np.asarray(values)
    if not np.issubdtype(array.dtype, np.integer) or array.ndim > 1:
        raise ValueError(f"{name} must be whole bytes, a number or one per entry, got {values!r}")
    if (array < least).any():
        raise ValueError(f"{name} must be at least {least}, got {int(array.min())}")
    return array.astype(np.int64)
