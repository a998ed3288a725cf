"""Pools that an expert is pinned to or banned from, and placements that keep to it. Pure.

The planner in `placement` knows nothing of rules. What it makes is corrected here: a copy that is
where it may not be goes, and where too few are left it changes places with a copy of the same group
(layer) whose load is nearest. Repairs after a failure do not wait for rules: an expert without a
copy is loaded wherever there is room, and the way back to the plan leads back to the rules.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from orchestrator.control.keys import NO_KEYS, Copies, Keys, PlacedKey, copies_per_key
from orchestrator.control.state import Intent, Rule


class NoPlaceAllowed(ValueError):
    """The rules leave no place for a key; the message names it."""


def forbidden(intent: Intent, rules: frozenset[Rule]) -> dict[str, Keys]:
    """Shard -> keys it must not be given."""
    pools = {id: place.pool for id, place in intent.places.items()}
    by_pool = {
        pool: frozenset(rule.key for rule in rules if not rule.allows(pool))
        for pool in set(pools.values())
    }
    return {id: by_pool[pool] for id, pool in pools.items() if by_pool[pool]}


def broken(intent: Intent, shards: list[str]) -> Keys:
    """Keys that the plan has on one of `shards` against the rules."""
    if not intent.rules:
        return NO_KEYS
    there = forbidden(intent, intent.rules)
    return NO_KEYS.union(
        *(intent.planned.get(id, NO_KEYS) & there.get(id, NO_KEYS) for id in shards)
    )


def honour(
    target: Copies,
    current: Copies,
    forbidden: Mapping[str, Keys],
    rooms: Mapping[str, int],
    load: Callable[[PlacedKey], float],
    min_copies: int,
) -> dict[str, Keys]:
    """`target` with every copy where it may be.

    current: copies now, which are kept where it makes no difference; rooms: keys each shard may
    hold; load: of a key.

    Raises:
        NoPlaceAllowed: a key would have fewer than `min_copies` copies.
    """
    placing = _Placing(
        {id: set(target.get(id, NO_KEYS)) for id in rooms},
        current,
        forbidden,
        rooms,
        load,
        max(1, min_copies),
        copies_per_key(target),
    )
    for id in sorted(rooms):
        for key in sorted(placing.held[id] & forbidden.get(id, NO_KEYS)):
            placing.move_off(key, id)
    return {id: frozenset(keys) for id, keys in placing.held.items()}


@dataclass(slots=True)
class _Placing:
    """A placement while it is corrected."""

    held: dict[str, set[PlacedKey]]
    current: Copies
    forbidden: Mapping[str, Keys]
    rooms: Mapping[str, int]
    load: Callable[[PlacedKey], float]
    min_copies: int
    counts: Counter[PlacedKey] = field(default_factory=Counter)

    def move_off(self, key: PlacedKey, id: str) -> None:
        """Take `key` away from a shard; to another where too few copies would be left."""
        self.held[id].discard(key)
        self.counts[key] -= 1
        if self.counts[key] >= self.min_copies:
            self._fill(key, id)
            return
        takers = [
            other
            for other in self.rooms
            if key not in self.held[other] and self._may(key, other) and other != id
        ]
        # Where it is already nothing has to be loaded; then where most room is left.
        takers.sort(key=lambda t: (key not in self.current.get(t, NO_KEYS), -self._left(t), t))
        for taker in takers:
            if self._left(taker) > 0 or self._exchange(key, id, taker) or self._drop(key, taker):
                self.held[taker].add(key)
                self.counts[key] += 1
                return
        raise NoPlaceAllowed(
            f"the rules for {key} leave it {self.counts[key]} copies, {self.min_copies} are "
            "needed: allow it another pool, or add shards to those that may hold it"
        )

    def _may(self, key: PlacedKey, id: str) -> bool:
        return key not in self.forbidden.get(id, NO_KEYS)

    def _left(self, id: str) -> int:
        return self.rooms[id] - len(self.held[id])

    def _exchange(self, key: PlacedKey, id: str, taker: str) -> bool:
        """Give `id` a copy that `taker` has for `key`: the one with the nearest load."""
        here = self.held[id]
        ways = [
            one
            for one in self._like(key, self.held[taker])
            if one not in here and self._may(one, id) and self._may(one, taker)
        ]
        if not ways:
            return False
        wanted = self.load(key)
        given = min(ways, key=lambda one: (abs(self.load(one) - wanted), one))
        self.held[taker].discard(given)
        here.add(given)
        return True

    def _drop(self, key: PlacedKey, taker: str) -> bool:
        """Make room on `taker` by a copy that others stand in for."""
        spare = [
            one for one in self._like(key, self.held[taker]) if self.counts[one] > self.min_copies
        ]
        if not spare:
            return False
        gone = min(spare, key=lambda one: (self.load(one), one))
        self.held[taker].discard(gone)
        self.counts[gone] -= 1
        return True

    def _fill(self, key: PlacedKey, id: str) -> None:
        """The slot that came free is for the key of that group with most load per copy."""
        everywhere: set[PlacedKey] = set().union(*self.held.values())
        ways = [
            one
            for one in self._like(key, everywhere)
            if one not in self.held[id] and self._may(one, id)
        ]
        if ways:
            one = max(ways, key=lambda one: (self.load(one) / self.counts[one], one))
            self.held[id].add(one)
            self.counts[one] += 1

    @staticmethod
    def _like(key: PlacedKey, keys: set[PlacedKey]) -> list[PlacedKey]:
        """Keys that take the same memory and are used by the same layer."""
        return [one for one in keys if (one.kind, one.group) == (key.kind, key.group)]
