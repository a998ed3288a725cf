"""Shares the devices' memory out over layers: how many experts of each layer a device holds.

First every layer gets room for each expert, spread over devices in proportion to their memory.
What is left buys redundant slots one by one, each for the layer where it helps most. The gain of a
further copy of an expert of w tokens with c copies is w^2 / (c (c + 1)): that much falls
sum(w^2 / c), a measure of how lumpy a layer's load still is. The slot goes to the device with most
memory left. All experts of a model take the same bytes on a device, so memory is counted in
experts.
"""

from __future__ import annotations

import heapq

import numpy as np
from numpy.typing import ArrayLike, NDArray

from placement.types import FloatArray
from placement.validation import check_load


def share_slots(
    load: ArrayLike,
    capacity: ArrayLike,
    *,
    min_copies: int = 1,
    max_redundant_per_layer: int | None = None,
) -> NDArray[np.int64]:
    """int64 [L, D] experts that each device holds of each layer; what `plan_placement` takes.

    Args:
        load: float [L, E] tokens per expert, what redundant slots are judged by.
        capacity: int [D] experts of any layer that a device has memory for; leave staging out.
        min_copies: devices every expert must live on; 2 survives the loss of any one device.
        max_redundant_per_layer: redundant slots per layer at most; None: as many as fit.

    Raises:
        ValueError: bad shapes, or too little memory, with what is missing.
    """
    tokens = check_load(load)
    L, E = tokens.shape
    left = np.array(_whole(capacity), ndmin=1)
    D = left.shape[0]
    if not 1 <= min_copies <= D:
        raise ValueError(f"min_copies = {min_copies} must be between 1 and the {D} devices")
    needed, total = L * E * min_copies, int(left.sum())
    if total < needed:
        raise ValueError(
            f"too little memory: {E} experts in {L} layers, {min_copies} each, are {needed}; the "
            f"devices hold {total}, {needed - total} less"
        )
    slots = _hold_all(left, L, E, min_copies)
    limit = E * D if max_redundant_per_layer is None else max_redundant_per_layer
    _spend_spare(tokens, left, slots, min_copies, limit)
    return slots


def _hold_all(left: NDArray[np.int64], layers: int, experts: int, copies: int) -> NDArray[np.int64]:
    """[L, D] slots for every expert `copies` times; takes them off `left`."""
    slots = np.zeros((layers, left.shape[0]), np.int64)
    part = left / max(int(left.sum()), 1)
    for layer in range(layers):
        fits = np.minimum((experts * copies * part).astype(np.int64), experts)
        slots[layer] = np.minimum(fits, left)
        left -= slots[layer]
    for layer in range(layers):
        for _ in range(experts * copies - int(slots[layer].sum())):
            device = _roomiest(left, slots[layer], experts)
            if device < 0 or left[device] < 1:
                raise ValueError(
                    f"too little memory: no device that lacks an expert of layer {layer} has room "
                    "for one more; it is spread too unevenly"
                )
            slots[layer, device] += 1
            left[device] -= 1
    return slots


def _spend_spare(
    tokens: FloatArray,
    left: NDArray[np.int64],
    slots: NDArray[np.int64],
    min_copies: int,
    limit: int,
) -> None:
    """Adds redundant slots to `slots` while memory lasts, `limit` for each layer at most."""
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
        value = -float(gain[expert]) * float(total[layer])
        # Of layers that gain equally, the one with fewest redundant slots is first.
        return value, int(spent[layer]), layer, expert

    queue = [offer(layer) for layer in range(L)]
    heapq.heapify(queue)
    while queue:
        value, _, layer, expert = heapq.heappop(queue)
        device = _roomiest(left, slots[layer], E)
        if value > 0 or spent[layer] >= limit or device < 0 or left[device] < 1:
            continue
        slots[layer, device] += 1
        left[device] -= 1
        spent[layer] += 1
        copies[layer, expert] += 1
        heapq.heappush(queue, offer(layer))


def _roomiest(left: NDArray[np.int64], slots: NDArray[np.int64], experts: int) -> int:
    """Device with most memory left that lacks some expert of the layer; -1 for none."""
    room = np.where(slots < experts, left, -1)
    device = int(room.argmax())
    return device if room[device] >= 0 else -1


def _whole(values: ArrayLike) -> NDArray[np.int64]:
    array = np.asarray(values)
    if not np.issubdtype(array.dtype, np.integer) or array.ndim > 1:
        raise ValueError(f"capacity must be whole experts, one number per device, got {values!r}")
    if (array < 0).any():
        raise ValueError(f"capacity must be at least 0, got {int(array.min())}")
    return array.astype(np.int64)
