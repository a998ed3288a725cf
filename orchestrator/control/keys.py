"""What is placed on shards, and sets of copies.

A `PlacedKey` names one thing that some shard has to hold. Today that is a routed expert, of kind
"expert", with its layer as group; other kinds (rows of a memory table) need no other type. Nothing
in the control plane but `planning` looks inside a key.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

EXPERT = "expert"


class PlacedKey(NamedTuple):
    """kind: things of one kind take the same bytes on one shard; group, number: which of them."""

    kind: str
    group: int
    number: int

    def __str__(self) -> str:
        return f"{self.kind} {self.group}/{self.number}"


Keys = frozenset[PlacedKey]

Copies = Mapping[str, Keys]
"""Shard id -> what it holds or is to hold. Shards that hold nothing may be left out."""

NO_KEYS: Keys = frozenset()


def all_keys(copies: Copies) -> Keys:
    """Every key that has a copy."""
    return NO_KEYS.union(*copies.values())


def copies_per_key(copies: Copies) -> Counter[PlacedKey]:
    return Counter(key for keys in copies.values() for key in keys)


def plus(copies: Copies, more: Copies) -> dict[str, Keys]:
    """Copies of either."""
    joined = dict(copies)
    for shard, keys in more.items():
        joined[shard] = joined.get(shard, NO_KEYS) | keys
    return _filled(joined)


def minus(copies: Copies, fewer: Copies) -> dict[str, Keys]:
    """Copies of the first that the second lacks."""
    return _filled({shard: keys - fewer.get(shard, NO_KEYS) for shard, keys in copies.items()})


def number_of(copies: Copies) -> int:
    return sum(map(len, copies.values()))


def name_some(keys: Iterable[PlacedKey], most: int = 3) -> str:
    """The first few keys for people: "expert 0/1, expert 0/2 and 5 more"."""
    ordered = sorted(keys)
    named = ", ".join(map(str, ordered[:most]))
    return f"{named} and {len(ordered) - most} more" if len(ordered) > most else named


def _filled(copies: Copies) -> dict[str, Keys]:
    return {shard: keys for shard, keys in copies.items() if keys}
