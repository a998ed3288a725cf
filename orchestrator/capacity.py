"""How much memory each shard may fill with experts. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ShardMemory:
    """What is known of one shard.

    node: the same for shards that share a host's memory. on_host: its weights are in that memory,
    not in a device's own. free_bytes: what it measured at its start. limit_bytes: what the config
    gives it, None for as much as there is.
    """

    node: str
    on_host: bool
    free_bytes: int
    limit_bytes: int | None


def memory_of_shards(shards: Sequence[ShardMemory]) -> list[int]:
    """Bytes for weights, by shard.

    A shard with a limit gets that. A device's own memory is its shard's alone. The memory of a host
    was measured by each of its shards as if it were theirs: what the ones with a limit leave of it
    is divided among the others.
    """
    return [_memory_of(shard, shards) for shard in shards]


def _memory_of(shard: ShardMemory, shards: Sequence[ShardMemory]) -> int:
    if shard.limit_bytes is not None:
        return shard.limit_bytes
    if not shard.on_host:
        return shard.free_bytes
    neighbours = [other for other in shards if other.on_host and other.node == shard.node]
    sharing = [other for other in neighbours if other.limit_bytes is None]
    # The one that looked first saw the memory before anybody had filled any.
    free_bytes = max(other.free_bytes for other in sharing)
    promised_bytes = sum(other.limit_bytes or 0 for other in neighbours)
    return max(0, free_bytes - promised_bytes) // len(sharing)
