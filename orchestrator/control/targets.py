"""What a verb's target names: a component, a node, a pool, an expert; else the nearest name."""

import difflib
from collections.abc import Collection

from orchestrator.control.keys import EXPERT, PlacedKey
from orchestrator.control.lifecycle import Kind
from orchestrator.control.turn import Turn

NODE = "node/"
NAMED = 8
"""Names that a refusal lists where none is near."""


class Refused(Exception):
    """The verb cannot be done; the message says why and what would help."""


def unknown(what: str, name: str, known: Collection[str]) -> Refused:
    near = difflib.get_close_matches(name, known, n=1)
    names = sorted(known)
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    there = f"there are {', '.join(names[:NAMED])}{more}" if names else f"there is no {what}"
    return Refused(f"unknown {what} {name!r}: {f'did you mean {near[0]}?' if near else there}")


def component_named(turn: Turn, id: str) -> str:
    if id not in turn.intent.places:
        raise unknown("component", id, turn.intent.places)
    return id


def node_named(turn: Turn, target: str) -> str:
    """The node of a target `node/NAME`; one that was cordoned need not have components."""
    name = target.removeprefix(NODE)
    nodes = {c.said.node for c in turn.facts.components.values()} | turn.intent.cordoned_nodes
    nodes.discard("")
    if name not in nodes:
        raise unknown("node", name, nodes)
    return name


def on_node(turn: Turn, node: str) -> list[str]:
    return sorted(id for id, c in turn.facts.components.items() if c.said.node == node)


def shard_pools(turn: Turn) -> list[str]:
    return sorted({p.pool for p in turn.intent.places.values() if p.kind is Kind.SHARD})


def pools_named(turn: Turn, names: str) -> frozenset[str]:
    """Pools of shards, separated by commas."""
    found = frozenset(name.strip() for name in names.split(",") if name.strip())
    if not found:
        raise Refused("no pool is named: give one, or several separated by commas")
    known = shard_pools(turn)
    for name in sorted(found):
        if name not in known:
            raise unknown("pool of shards", name, known)
    return found


def expert_named(turn: Turn, name: str) -> PlacedKey:
    """The expert LAYER/EXPERT."""
    parts = name.split("/")
    if len(parts) != 2 or not all(part.isdecimal() for part in parts):
        raise Refused(f"{name!r} is no expert: give LAYER/EXPERT, such as 3/17")
    key = PlacedKey(EXPERT, int(parts[0]), int(parts[1]))
    if key in turn.intent.keys:
        return key
    of_layer = [one.number for one in turn.intent.keys if one.group == key.group]
    if of_layer:
        raise Refused(f"layer {key.group} has no expert {key.number}: the last is {max(of_layer)}")
    layers = sorted({one.group for one in turn.intent.keys})
    if not layers:
        raise Refused("no expert is known yet: wait until the mesh serves")
    raise Refused(
        f"layer {key.group} has no routed experts: the layers that have are {layers[0]} to "
        f"{layers[-1]}"
    )
