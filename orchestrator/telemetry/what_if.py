"""What another pool size would come to, planned from what is known of the mesh; it changes nothing.

A shard that would join counts as an average one of its pool; those that would leave are the ones
with the highest numbers. Each keeps room for one copy free, as the control plane plans. The
constant part of calls is left out, so small batches are judged too well.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from orchestrator.api.models import PlacementView
from placement.memory import share_slots
from placement.planner import list_moves, plan_placement
from placement.search.bounds import balancedness
from placement.search.split import split_tokens
from placement.types import EMPTY, FloatArray, IntArray
from placement.validation import check_problem

KEPT_FREE = 1
"""Copies that a shard has room for beside those it holds, for exchanges."""


class Impossible(ValueError):
    """There is no placement for that; the message says what is missing."""


@dataclass(frozen=True, slots=True)
class ShardRoom:
    """room: copies that its memory has place for; copy_bytes: of one."""

    id: str
    pool: str
    room: int
    speed: float
    copy_bytes: int


@dataclass(frozen=True, slots=True)
class Prospect:
    """What a placement comes to with a load. slowest: time that the slowest shard of each layer
    takes, summed, in assignments of a shard of speed 1. share_of_load: by shard."""

    shards: int
    balancedness: float
    slowest: float
    least_copies: int
    share_of_load: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Answer:
    """now: the placement as it is; then: as it would be. time_ratio: then over now, of the experts'
    time for the same load; bound: the best that any placement could reach."""

    now: Prospect
    then: Prospect
    time_ratio: float
    bound: float
    copies_to_load: int
    bytes_to_load: int
    survives_any_shard: bool
    reason: str


def what_if(
    load: FloatArray,
    shards: Sequence[ShardRoom],
    placement: PlacementView,
    sizes: Mapping[str, int],
    min_copies: int,
) -> Answer:
    """Plan anew for pools of those `sizes`, others as they are. load: [L, E].

    Slow: call it in a thread.

    Raises:
        Impossible: too little memory, or a pool that nothing is known of.
    """
    present = {shard.id for shard in shards}
    now_shards = [shard for shard in shards if shard.id in placement.shards]
    then_shards = resized(shards, sizes)
    current = _array(placement, [shard.id for shard in then_shards])
    speed = np.array([shard.speed for shard in then_shards])
    room = np.array([max(0, shard.room - KEPT_FREE) for shard in then_shards], np.int64)
    try:
        slots = share_slots(load, room, min_copies=min_copies)
        planned = plan_placement(load, speed, slots, current=current, min_copies=min_copies)
    except ValueError as error:
        raise Impossible(str(error)) from error
    now = prospect(load, _array(placement, [s.id for s in now_shards]), now_shards)
    then = prospect(load, planned.experts, then_shards)
    moves = list_moves(planned.experts, current)
    copy_bytes = np.array([shard.copy_bytes for shard in then_shards])
    joining = len([shard for shard in then_shards if shard.id not in present])
    words = f"{joining} shards would join; " if joining else ""
    return Answer(
        now,
        then,
        then.slowest / now.slowest if now.slowest else 1.0,
        planned.bound,
        len(moves),
        int(copy_bytes[moves[:, 1]].sum()),
        then.least_copies >= 2,
        words + planned.reason,
    )


def resized(shards: Sequence[ShardRoom], sizes: Mapping[str, int]) -> list[ShardRoom]:
    """The shards with pools of other sizes. Raises Impossible."""
    pools: dict[str, list[ShardRoom]] = {}
    for shard in shards:
        pools.setdefault(shard.pool, []).append(shard)
    if unknown := set(sizes) - set(pools):
        raise Impossible(
            f"there is no pool {', '.join(sorted(unknown))}: there are {', '.join(sorted(pools))}"
        )
    found = []
    for pool, unsorted in pools.items():
        members = sorted(unsorted, key=_number)
        size = sizes.get(pool, len(members))
        found += members[:size]
        room = int(np.mean([member.room for member in members]))
        copy_bytes = int(np.mean([member.copy_bytes for member in members]))
        speed = float(np.mean([member.speed for member in members]))
        first = _number(members[-1]) + 1
        found += [
            ShardRoom(f"{pool}-{first + more}", pool, room, speed, copy_bytes)
            for more in range(size - len(members))
        ]
    if not found:
        raise Impossible("no shard would be left")
    return found


def prospect(load: FloatArray, experts: IntArray, shards: Sequence[ShardRoom]) -> Prospect:
    """experts: [L, D, S] of these shards.

    Raises:
        Impossible: an expert with load has no copy.
    """
    speed = np.array([shard.speed for shard in shards])
    try:
        shares = split_tokens(experts, load, speed).sum(axis=2)
    except ValueError as error:
        raise Impossible(str(error)) from error
    times = shares / speed
    part = shares.sum(axis=0) / max(1.0, float(load.sum()))
    return Prospect(
        len(shards),
        balancedness(times, check_problem(load, speed)),
        float(times.max(axis=1).sum()),
        int(_copies(experts, load.shape[1]).min()),
        {shard.id: round(float(p), 4) for shard, p in zip(shards, part, strict=True)},
    )


def _copies(experts: IntArray, number: int) -> NDArray[np.int64]:
    """[L, E]."""
    return np.stack([np.bincount(row[row != EMPTY], minlength=number) for row in experts])


def _array(placement: PlacementView, shards: Sequence[str]) -> IntArray:
    """[L, D, S] of what each of `shards` holds; nothing of those the placement does not know."""
    held = [
        [placement.shards.get(shard, {}).get(layer, []) for shard in shards]
        for layer in placement.layers
    ]
    slots = max((len(one) for row in held for one in row), default=0)
    array = np.full((len(held), len(shards), max(1, slots)), EMPTY, np.int32)
    for layer, row in enumerate(held):
        for device, experts in enumerate(row):
            array[layer, device, : len(experts)] = experts
    return array


def _number(shard: ShardRoom) -> int:
    tail = shard.id.rpartition("-")[2]
    return int(tail) if tail.isdecimal() else 0
