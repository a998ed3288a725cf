"""Orders the way from one placement to another into batches that are safe at every moment.

A batch adds copies beside what is held, is published, then drops copies. Greedy: whatever fits is
added, in rounds so that shards fill evenly; whatever target holders stand in for by then is
dropped. Where nothing fits any more, a copy that others stand in for makes room, though the target
wants it: it comes back later.

Invariants: no shard ever holds more than its room; no key that has a copy loses its last one.
"""

from collections.abc import Mapping

from orchestrator.control.keys import (
    NO_KEYS,
    Copies,
    Keys,
    PlacedKey,
    copies_per_key,
    minus,
    plus,
)
from orchestrator.control.plan_request import ShardRoom
from orchestrator.control.state import Batch


class NoWay(ValueError):
    """The shards' memory leaves no way to the target; the message names where it ends."""


def batches(
    current: Copies, target: Copies, rooms: Mapping[str, ShardRoom], bytes_per_s: float
) -> tuple[Batch, ...]:
    """The batches from `current` to `target`.

    rooms: of the shards that may be changed; copies elsewhere stand in for none of theirs and stay.

    Raises:
        NoWay: nothing more can be added, and no copy can be spared to make room.
    """
    made: list[Batch] = []
    spared: dict[str, Keys] = {}
    while True:
        missing = _of(rooms, minus(target, current))
        extra = _of(rooms, minus(current, target))
        if not missing and not extra:
            return tuple(made)
        # A copy that made room for another one comes back when the others are there.
        add = _that_fit(minus(missing, spared) or missing, current, rooms)
        grown = plus(current, add)
        drop = _spare(extra, grown)
        if not add and not drop:
            drop = _make_room(minus(missing, spared), spared, current)
            spared = plus(spared, drop)
            if not drop:
                shard, keys = min(missing.items() or extra.items())
                raise NoWay(f"no room for {min(keys)} on {shard}, and no copy there can be spared")
        made.append(Batch(add, drop, predict_s(add, rooms, bytes_per_s)))
        current = minus(grown, drop)


def predict_s(add: Copies, rooms: Mapping[str, ShardRoom], bytes_per_s: float) -> float:
    """How long loading takes: shards load side by side."""
    return max((bytes_of(keys, rooms[shard]) for shard, keys in add.items()), default=0) / (
        bytes_per_s
    )


def bytes_of(keys: Keys, room: ShardRoom) -> int:
    if len(room.key_bytes) == 1:
        return len(keys) * next(iter(room.key_bytes.values()))
    return sum(room.key_bytes[key.kind] for key in keys)


def _of(rooms: Mapping[str, ShardRoom], copies: Copies) -> dict[str, Keys]:
    return {shard: keys for shard, keys in copies.items() if shard in rooms and keys}


def _that_fit(missing: Copies, held: Copies, rooms: Mapping[str, ShardRoom]) -> dict[str, Keys]:
    add: dict[str, Keys] = {}
    for shard, keys in sorted(missing.items()):
        room = rooms[shard]
        left = room.capacity_bytes - bytes_of(held.get(shard, NO_KEYS), room)
        fits = []
        for key in sorted(keys):
            if room.key_bytes[key.kind] <= left:
                fits.append(key)
                left -= room.key_bytes[key.kind]
        if fits:
            add[shard] = frozenset(fits)
    return add


def _spare(extra: Copies, grown: Copies) -> dict[str, Keys]:
    """Of the copies not wanted, those that another copy stands in for."""
    left = copies_per_key(grown)
    drop: dict[str, set[PlacedKey]] = {}
    for shard, keys in sorted(extra.items()):
        for key in sorted(keys):
            if left[key] > 1:
                left[key] -= 1
                drop.setdefault(shard, set()).add(key)
    return {shard: frozenset(keys) for shard, keys in drop.items()}


def _make_room(missing: Copies, spared: Copies, held: Copies) -> dict[str, Keys]:
    """One copy that others stand in for, on a shard that lacks room for a missing one. No copy is
    spared twice, so this ends."""
    counts = copies_per_key(held)
    for shard in sorted(missing):
        spare = held.get(shard, NO_KEYS) - spared.get(shard, NO_KEYS)
        spare = frozenset(key for key in spare if counts[key] > 1)
        if spare:
            return {shard: frozenset({max(spare, key=lambda key: (counts[key], key))})}
    return {}
