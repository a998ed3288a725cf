"""The intent of a mesh whose journal is lost, from what its living processes say. Pure.

What they hold becomes the epoch, so that dispatchers go on as they are. What only the journal knew
is gone: rules, cordons, sizes that were asked for and a change of placement that was under way.
"""

from collections.abc import Collection, Mapping

from actors.descriptions import RouterDescription, Said, ShardDescription
from actors.experts.spec import ExpertSpec
from orchestrator.actor_names import ActorName
from orchestrator.config.schema import MeshConfig
from orchestrator.control.keys import Keys, PlacedKey
from orchestrator.control.lifecycle import Kind
from orchestrator.control.sizes import ENGINE_POOL
from orchestrator.control.state import Epoch, EpochId, Intent, Place
from orchestrator.runtime.intent import ROUTER_POOL, keys_of, places_of


def rebuilt_intent(
    config: MeshConfig,
    spec: ExpertSpec,
    fingerprint: str,
    alive: Collection[ActorName],
    said: Mapping[ActorName, Said],
    now_s: float,
) -> Intent:
    """What a controller goes on with.

    alive: processes of the mesh; said: by those that answered. now_s: seconds since 1970; as a term
    it is above any that was counted, so dispatchers and shards take what this controller says.
    """
    newest: dict[str, ActorName] = {}
    for name in sorted(alive, key=lambda name: name.generation):
        newest[name.id] = name
    places = places_of(config)
    for name in newest.values():
        pool = places[name.id].pool if name.id in places else _pool_of(name)
        places[name.id] = Place(name.id, name.kind, pool, generation=name.generation)
    copies = {
        name.id: _held(description)
        for name in newest.values()
        if isinstance(description := said.get(name), ShardDescription)
    }
    incarnations = {
        name.id: description.incarnation
        for name in newest.values()
        if isinstance(description := said.get(name), ShardDescription | RouterDescription)
    }
    term = int(now_s)
    return Intent(
        term=term,
        fingerprint=fingerprint,
        keys=keys_of(spec),
        places=places,
        planned=copies,
        planned_for=frozenset(copies),
        epoch=Epoch(EpochId(term, 1), copies, incarnations) if any(copies.values()) else None,
    )


def _held(said: ShardDescription) -> Keys:
    return frozenset(PlacedKey(*key) for key in said.held.holdings)


def _pool_of(name: ActorName) -> str:
    """Of a place that was added while the mesh ran: `pool`-`number`."""
    match name.kind:
        case Kind.ENGINE:
            return ENGINE_POOL
        case Kind.ROUTER:
            return ROUTER_POOL
        case Kind.SHARD:
            return name.id.rpartition("-")[0]
