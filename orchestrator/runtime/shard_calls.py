"""Which method of a shard does what the core commands, whatever carries the call."""

from typing import Any

from orchestrator.control.actions import Prepare, Retire
from orchestrator.control.clients import Command


def call_of(command: Command, most_bytes: int) -> tuple[str, tuple[Any, ...]]:
    """(method of `ExpertShard`, its arguments). most_bytes: what the shard may fill."""
    order = tuple(command.order)
    if isinstance(command, Prepare):
        keys = frozenset(map(tuple, command.keys))
        return "prepare", (order, keys, most_bytes, command.bytes_per_s)
    if isinstance(command, Retire):
        return "retire", (order, frozenset(map(tuple, command.keys)))
    return "cancel", (order,)
