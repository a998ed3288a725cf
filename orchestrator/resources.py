"""Whether the nodes of a cluster have what shards and engines ask for. Pure.

Ray lets an actor that fits no node wait for ever. Two questions are asked instead: before anything
is started, whether the nodes have it at all; and of actors that have waited a while, what is free.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from orchestrator.config.schema import MeshConfig
from orchestrator.core_shares import core_shares
from orchestrator.errors import UserError

Amounts = Mapping[str, float]
"""Resource name as Ray has it (`CPU`, `GPU`, `NPU`, ...) -> amount."""


@dataclass(frozen=True, slots=True)
class Demand:
    """`count` actors that ask for `each`; key: the section of the config that says so."""

    key: str
    count: int
    each: Amounts


def shard_demand(config: MeshConfig, pool_name: str) -> Demand:
    """What the shards of one pool ask for."""
    pool = config.pools[pool_name]
    return Demand(f"pools.{pool_name}", pool.shards, {"CPU": pool.threads, **pool.resources})


def engine_demand(config: MeshConfig) -> Demand:
    """What the engines ask for."""
    engines, threads = config.engines, core_shares(config).engine_threads
    return Demand("engines", engines.replicas, {"CPU": threads, **engines.resources})


def demands_of(config: MeshConfig) -> list[Demand]:
    """What all shards and engines of a mesh ask for."""
    return [*(shard_demand(config, name) for name in config.pools), engine_demand(config)]


def check_room(demands: Sequence[Demand], nodes: Mapping[str, Amounts]) -> None:
    """nodes: what each has in all, by its name.

    Each demand is looked at by itself; whether they fit together only Ray's scheduler can say.

    Raises:
        UserError: one does not fit. Names it, what it asks for and what the nodes offer.
    """
    for demand in demands:
        if places(demand.each, nodes.values()) < demand.count:
            raise no_room(demand, nodes, "offer")


def no_room(demand: Demand, nodes: Mapping[str, Amounts], verb: str) -> UserError:
    """What to raise where the nodes lack what `demand` asks for; verb: they "offer" or "have free"
    what `nodes` says."""
    offered = "; ".join(f"{name}: {_text(demand.each, has)}" for name, has in nodes.items())
    each = ", ".join(f"{name} {amount:g}" for name, amount in demand.each.items())
    return UserError(
        f"{demand.key} asks for {demand.count} x ({each}), which the nodes do not have "
        f"(they {verb} {offered or 'nothing'})",
        f"lower {demand.key} or add nodes that have it",
    )


def places(each: Amounts, nodes: Iterable[Amounts]) -> int:
    """How many actors that ask for `each` the nodes hold, if nothing else ran there."""
    return sum(
        int(min(node.get(name, 0.0) / amount for name, amount in each.items() if amount > 0))
        for node in nodes
    )


def _text(each: Amounts, has: Amounts) -> str:
    """Of what a node has, what is asked for."""
    return ", ".join(f"{name} {has.get(name, 0.0):g}" for name in each)
