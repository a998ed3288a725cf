"""`MeshStatus` from the control plane's state and what the processes said. Pure."""

from collections.abc import Callable, Mapping

from actors.descriptions import EngineDescription, RouterDescription, Said, ShardDescription
from orchestrator.config.pools import PoolConfig
from orchestrator.control.lifecycle import Kind, Life
from orchestrator.control.state import Component, Place, State
from orchestrator.status import ComponentKind, ComponentState, ComponentStatus

STATES = {
    Life.STARTING: ComponentState.STARTING,
    Life.READY: ComponentState.READY,
    Life.SUSPECT: ComponentState.SUSPECT,
    Life.DRAINING: ComponentState.DRAINING,
    Life.STOPPED: ComponentState.DEAD,
    Life.DEAD: ComponentState.DEAD,
    Life.FAILED: ComponentState.DEAD,
}

LookUp = Callable[[str, int], Said | None]
"""What the process of a place and generation said last."""


def component_statuses(
    state: State, pools: Mapping[str, PoolConfig], said: LookUp
) -> list[ComponentStatus]:
    """Shards, routers, engines, each kind in the order of its places."""
    fastest = max((c.said.rate for c in _shards(state)), default=1.0)
    return [
        _status(place, state.facts.components.get(place.id), pools, said, fastest)
        for kind in (Kind.SHARD, Kind.ROUTER, Kind.ENGINE)
        for place in state.intent.places.values()
        if place.kind is kind
    ]


def _shards(state: State) -> list[Component]:
    return [
        component
        for id, component in state.facts.components.items()
        if id in state.intent.places and state.intent.places[id].kind is Kind.SHARD
    ]


def _status(
    place: Place,
    component: Component | None,
    pools: Mapping[str, PoolConfig],
    look_up: LookUp,
    fastest: float,
) -> ComponentStatus:
    life = component.life if component else Life.STARTING
    last = look_up(place.id, component.generation if component else 0)
    shard = last if isinstance(last, ShardDescription) else None
    engine = last if isinstance(last, EngineDescription) else None
    detail = component.why if component else ""
    if life is Life.READY:
        detail = shard.detail if shard else engine.detail if engine else ""
    speed = component.said.rate / fastest if component and shard else None
    return ComponentStatus(
        id=place.id,
        kind=ComponentKind(place.kind),
        pool=place.pool if place.kind is Kind.SHARD else None,
        emulated=place.kind is Kind.SHARD and pools[place.pool].emulated,
        node=last.node.partition("/")[0] if last else "",
        pid=last.pid if last else 0,
        state=STATES[life],
        detail=detail,
        memory_bytes=(
            shard.memory_bytes if shard else engine.memory_bytes if engine else None
        ),
        slots=len(shard.held.holdings) if shard else None,
        speed=speed,
        calls=last.calls if isinstance(last, ShardDescription | RouterDescription) else None,
        failed_calls=shard.failed_calls if shard else None,
        busy_s=shard.busy_s if shard else None,
    )  # fmt: skip
