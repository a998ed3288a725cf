"""Orders to a shard that no controller sends."""

import math
from collections.abc import Iterable

from actors.descriptions import EXPERT
from actors.shard.shard import ExpertShard

NO_LIMIT_BYTES = 1 << 62


def hold_exactly(shard: ExpertShard, slots: Iterable[tuple[int, int]]) -> int:
    """Have it drop what is not among these (layer, expert), then load the others, at any speed.

    Returns bytes resident.
    """
    wanted = frozenset((EXPERT, layer, expert) for layer, expert in slots)
    held = shard.describe().held
    term, number = held.order
    shard.retire((term, number + 1), held.holdings - wanted)
    said = shard.prepare((term, number + 2), wanted, NO_LIMIT_BYTES, math.inf)
    if said.held.failure:
        raise RuntimeError(said.held.failure)
    return said.memory_bytes
