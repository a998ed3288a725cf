"""Orders the copies from one placement to the next into batches that are safe at every moment.

A batch loads copies in the background, then commits: routers switch, replaced experts are dropped.
Every batch keeps three promises: no expert ever loses its last replica; no device ever holds more
than its slots plus its staging memory; and, where a budget is set, the batch takes as long as the
budget and the slowest link demand.

A copy needs no staging if its slot is empty, or holds a replica that others can stand in for now:
then that one is dropped before loading. Otherwise the copy waits in staging memory until what it
replaces is safe elsewhere, possibly by a copy of the same batch: so experts can swap devices.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from placement.schedule import Load, ScheduleState
from placement.types import EMPTY, IntArray
from placement.validation import check_experts

CHECKPOINT = -1
"""Source of a copy that no device can give: it is read from storage."""


@dataclass(frozen=True, slots=True)
class Move:
    """One copy to load."""

    layer: int
    device: int
    slot: int
    expert: int
    source: int
    """Device to copy from, or `CHECKPOINT`."""
    replaces: int
    """Expert that leaves the slot, or -1."""
    staged: bool
    """Whether it waits in staging memory until the batch commits."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Copies loaded together, committed at once."""

    moves: tuple[Move, ...]
    bytes: int
    duration_s: float


@dataclass(frozen=True, slots=True)
class MoveSchedule:
    """All batches, in order; `drops` are replicas given up for good that nothing replaces."""

    batches: tuple[Batch, ...]
    drops: tuple[tuple[int, int, int], ...]
    """(layer, device, slot) to empty, after the last batch."""
    bytes: int
    duration_s: float


def schedule_moves(
    current: ArrayLike,
    target: ArrayLike,
    *,
    expert_bytes: int | ArrayLike,
    link_bytes_per_s: ArrayLike,
    storage_bytes_per_s: float,
    staging_bytes: ArrayLike = 0,
    budget_bytes_per_s: float = float("inf"),
    max_batch_bytes: float = float("inf"),
) -> MoveSchedule:
    """Orders the way from `current` to `target`.

    Args:
        current, target: int [L, D, S] expert per slot, -1 for empty; the same S.
        expert_bytes: scalar or [L], weights of one expert of a layer.
        link_bytes_per_s: scalar or [D], what a device can send, and what it can receive.
        storage_bytes_per_s: what storage gives to all devices together.
        staging_bytes: scalar or [D], memory beyond the slots.
        budget_bytes_per_s: what all copies together may take from the network.
        max_batch_bytes: bytes per batch at most; a single copy or a swap may exceed it.

    Returns:
        `MoveSchedule`; empty batches for equal placements.

    Raises:
        ValueError: bad input, or experts that must swap devices without staging to do so.
    """
    old = np.asarray(current)
    if old.ndim != 3:
        raise ValueError(f"current must have shape [layers, devices, slots], got {old.shape}")
    L, D, S = old.shape
    E = int(max(np.max(old, initial=0), np.max(np.asarray(target), initial=0))) + 1
    old = check_experts(old, L, D, E, "current")
    new = check_experts(target, L, D, E, "target")
    if new.shape[2] != S:
        raise ValueError(f"target has {new.shape[2]} slots per device, current has {S}")
    size = _per(expert_bytes, L, "expert_bytes")
    link = _per(link_bytes_per_s, D, "link_bytes_per_s")
    if storage_bytes_per_s <= 0 or budget_bytes_per_s <= 0:
        raise ValueError("storage_bytes_per_s and budget_bytes_per_s must be positive")
    staging = np.broadcast_to(np.asarray(staging_bytes, np.float64), (D,))
    _check_all_stay(old, new)
    state = ScheduleState(old, new, size, staging)
    batches = []
    while state.incoming:
        loads = state.next_batch(max_batch_bytes)
        if not loads:
            (layer, device), experts = min(state.incoming.items())
            raise ValueError(
                f"staging_bytes: layer {layer}, device {device} must load expert {experts[0]} "
                f"before it can drop another one; that takes {int(size[layer])} bytes"
            )
        batches.append(_batch(state, loads, link, storage_bytes_per_s, budget_bytes_per_s))
        state.commit(loads)
    wanted = (state.live[:, :, :, None] == new[:, :, None, :]).any(axis=3)
    drops = np.argwhere((state.live != EMPTY) & ~wanted)
    return MoveSchedule(
        batches=tuple(batches),
        drops=tuple((int(a), int(b), int(c)) for a, b, c in drops),
        bytes=sum(batch.bytes for batch in batches),
        duration_s=sum(batch.duration_s for batch in batches),
    )


def _batch(
    state: ScheduleState,
    loads: list[Load],
    link: NDArray[np.float64],
    storage: float,
    budget: float,
) -> Batch:
    """Picks each copy's source, the least busy holder, and predicts how long the batch takes."""
    busy_in = np.zeros(link.shape[0])
    busy_out = np.zeros(link.shape[0])
    read = 0.0
    moves = []
    for load in loads:
        seconds = state.size[load.layer] / link
        busy_in[load.device] += seconds[load.device]
        # What made way for this batch is not live any more, so it is no source.
        holders = np.flatnonzero((state.live[load.layer] == load.expert).any(axis=1))
        source = CHECKPOINT
        if holders.size:
            source = int(holders[np.argmin(busy_out[holders] + seconds[holders])])
            busy_out[source] += seconds[source]
        else:
            read += state.size[load.layer] / storage
        moves.append(
            Move(
                load.layer, load.device, load.slot, load.expert, source, load.replaces, load.staged
            )
        )
    total = int(sum(state.size[move.layer] for move in moves))
    slowest = max(float(busy_in.max()), float(busy_out.max()), read, total / budget)
    return Batch(tuple(moves), total, slowest)


def _check_all_stay(current: IntArray, target: IntArray) -> None:
    for layer, (old, new) in enumerate(zip(current, target, strict=True)):
        lost = np.setdiff1d(old[old != EMPTY], new[new != EMPTY])
        if lost.size:
            raise ValueError(f"target: layer {layer} holds no copy of expert {int(lost[0])}")


def _per(values: ArrayLike, n: int, name: str) -> NDArray[np.float64]:
    array = np.asarray(values, np.float64)
    if array.shape not in ((), (n,)) or not (np.isfinite(array) & (array > 0)).all():
        raise ValueError(f"{name} must be positive, a number or {n} of them, got {values!r}")
    return np.broadcast_to(array, (n,))
