"""What the config asks for, as the control plane's first intent and its settings. Pure."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace

from actors.experts.spec import ExpertSpec
from actors.origin import Origin
from actors.wire.address import Address
from orchestrator.actor_names import ActorName
from orchestrator.config.schema import MeshConfig
from orchestrator.config.serving import RouterMode
from orchestrator.control.keys import EXPERT, Keys, PlacedKey
from orchestrator.control.lifecycle import Kind
from orchestrator.control.settings import PoolLimits, Settings
from orchestrator.control.sizes import ENGINE_POOL
from orchestrator.control.state import Facts, Intent, Place, State, Stray
from orchestrator.control.step import recovered

ROUTER_POOL = "router"


def settings_of(config: MeshConfig, node: str) -> Settings:
    """The limits of decisions that the config sets, for a controller on `node`."""
    limits, placement, engines = config.controller, config.placement, config.engines
    redundant = placement.redundant_slots
    return Settings(
        misses_to_suspect=limits.suspect_after_probes,
        misses_of_lost_node=limits.node_lost_after_probes,
        controller_node=node,
        suspect_limit_s=limits.replace_after_s,
        start_timeout_s=limits.shard_start_timeout_s,
        engine_start_timeout_s=limits.engine_start_timeout_s,
        restart_budget=limits.restart_budget,
        min_copies=placement.min_copies,
        most_redundant=None if redundant == "fill" else redundant,
        load_bytes_per_s=float(limits.load_bandwidth),
        rebalance_cooldown_s=limits.rebalance_pause_s,
        least_gain=limits.rebalance_gain,
        shard_pools={
            name: PoolLimits(least=pool.shards, most=pool.max_shards)
            for name, pool in config.pools.items()
        },
        domains={name: pool.domain for name, pool in config.pools.items() if pool.domain},
        engines=PoolLimits(least=engines.replicas, most=engines.max_replicas),
    )


def keys_of(spec: ExpertSpec) -> Keys:
    """Everything that has to be placed."""
    return frozenset(
        PlacedKey(EXPERT, layer, expert)
        for layer in spec.layers
        for expert in range(spec.num_experts)
    )


def places_of(config: MeshConfig) -> dict[str, Place]:
    """The processes that the config asks for."""
    places = []
    for name, pool in config.pools.items():
        for number in range(pool.shards + pool.spares):
            spare = number >= pool.shards
            places.append(Place(f"{name}-{number}", Kind.SHARD, name, spare=spare))
    if config.router.mode is RouterMode.ACTOR:
        places.append(Place("router-0", Kind.ROUTER, ROUTER_POOL))
    for number in range(config.engines.replicas):
        places.append(Place(f"engine-{number}", Kind.ENGINE, ENGINE_POOL))
    return {place.id: place for place in places}


def first_state(
    config: MeshConfig,
    spec: ExpertSpec,
    fingerprint: str,
    before: Intent | None,
    alive: Collection[ActorName],
    node: str,
    now_s: float,
) -> State:
    """What a controller on `node` begins with.

    before: the journal's intent. alive: processes of the mesh. Where some of them fill places of
    that intent it is gone on with; otherwise the mesh is over, and the config says what comes next.
    Other processes that live are ended.
    """
    settings = settings_of(config, node)
    if before is not None and before.fingerprint == fingerprint and _live_on(before, alive):
        state = recovered(before, settings, now_s)
    else:
        intent = Intent(
            term=before.term + 1 if before else 1,
            fingerprint=fingerprint,
            keys=keys_of(spec),
            places=places_of(config),
        )
        state = State(settings, intent, Facts(started_s=now_s, phase_since_s=now_s))
    strays = {
        Stray(name.id, name.kind, name.generation)
        for name in alive
        if not _filled_by(state.intent, name)
    }
    return replace(state, intent=replace(state.intent, strays=state.intent.strays | strays))


def with_pools(state: State, config: MeshConfig, added: Collection[str]) -> State:
    """The state with the places of pools that the config has come to list."""
    fresh = {id: place for id, place in places_of(config).items() if place.pool in added}
    intent = replace(state.intent, places={**fresh, **state.intent.places})
    return replace(state, intent=intent)


def with_origins(state: State, setups: Mapping[str, str], code: str) -> State:
    """The state with what processes that start now are started with."""
    origins = {pool: str(Origin(code, setup)) for pool, setup in setups.items()}
    return replace(state, settings=replace(state.settings, origins=origins))


def _live_on(intent: Intent, alive: Collection[ActorName]) -> bool:
    return any(_filled_by(intent, name) for name in alive)


def _filled_by(intent: Intent, name: ActorName) -> bool:
    place = intent.places.get(name.id)
    return place is not None and (place.kind, place.generation) == (name.kind, name.generation)


def with_directory(state: State, addresses: Iterable[Address]) -> State:
    """The state with where dispatchers follow the mesh, for whoever comes after this controller."""
    return replace(state, intent=replace(state.intent, directory=tuple(map(str, addresses))))
