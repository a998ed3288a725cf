"""From the control plane's state to what people and programs see of it. Pure.

Facts are shown as the controller has them: what a component said last, not what it would say now.
"""

from collections.abc import Collection, Iterable, Mapping

from actors.dispatch.report import DispatchReport
from orchestrator.api.models import (
    ClusterView,
    DispatcherView,
    DispatchView,
    DurationsView,
    EpochView,
    LossView,
    NodeView,
    PlacementView,
    PlaceView,
    PlanningView,
    PoolView,
    RollingView,
    RuleView,
    ShardSeenView,
    TransactionView,
)
from orchestrator.control.keys import NO_KEYS, Copies, Keys, copies_per_key, number_of
from orchestrator.control.lifecycle import Kind, Life, Wanted
from orchestrator.control.rolling import is_settled, outdated
from orchestrator.control.settings import PoolLimits
from orchestrator.control.sizes import ENGINE_POOL
from orchestrator.control.state import Component, EpochId, Place, Rolling, State
from orchestrator.control.turn import Turn

NOT_STARTED = "not started yet"
NAMED = 8
"""Experts named of those that a loss would take."""


def cluster_view(
    state: State,
    now_s: float,
    *,
    mesh: str = "",
    model: str = "",
    refuses: str = "",
    pids: Mapping[str, int] | None = None,
    reports: Mapping[str, tuple[DispatchReport, float]] | None = None,
) -> ClusterView:
    """now_s: of the controller's clock. refuses: the runner's `problem`; pids: by place; reports:
    by dispatcher, each with its age in seconds."""
    intent, facts = state.intent, state.facts
    pids = pids or {}
    reports = reports or {}
    ways = ways_of(report for report, _ in reports.values())
    old = set(outdated(state))
    epoch = intent.epoch
    followed = epoch is not None and all(
        d.adopted is not None and d.adopted >= epoch.id for d in facts.dispatchers.values()
    )
    return ClusterView(
        mesh=mesh,
        model=model,
        term=intent.term,
        epoch=_epoch(epoch.id) if epoch else None,
        followed=followed,
        settled=_is_settled(state, now_s),
        recovering=Turn(state, now_s).recovering,
        refuses=refuses,
        places=[
            _place(
                state,
                place,
                facts.components.get(id),
                pids.get(id),
                ways.get(id, UNKNOWN),
                old,
            )
            for id, place in sorted(intent.places.items())
        ],
        pools=_pools(state),
        nodes=_nodes(state, ways),
        transaction=_transaction(state, now_s),
        transactions=intent.transactions,
        planning=_planning(state, now_s),
        rolling=_rolling(intent.rolling),
        rules=[
            RuleView(
                expert=f"{rule.key.group}/{rule.key.number}",
                pinned=sorted(rule.pinned),
                banned=sorted(rule.banned),
            )
            for rule in sorted(intent.rules, key=lambda rule: rule.key)
        ],
        problems=dict(facts.problems),
        dispatchers=[
            DispatcherView(
                id=id,
                adopted=_epoch(one.adopted) if one.adopted else None,
                heard_ago_s=max(0.0, now_s - one.heard_s),
                did=_dispatch(*reports[id]) if id in reports else None,
            )
            for id, one in sorted(facts.dispatchers.items())
        ],
    )


Way = tuple[float | None, float | None]
"""Round trip in us, and bytes a second."""
UNKNOWN: Way = (None, None)


def ways_of(reports: Iterable[DispatchReport]) -> dict[str, Way]:
    """By shard, of those that some dispatcher has measured the way to."""
    found: dict[str, Way] = {}
    for shard in (shard for report in reports for shard in report.shards):
        if shard.round_trip_s:
            way = (round(shard.round_trip_s * 1e6, 1), round(shard.bytes_per_s))
            found[shard.id] = slowest_way([found.get(shard.id, UNKNOWN), way])
    return found


def slowest_way(ways: Iterable[Way]) -> Way:
    known = [(trip, rate) for trip, rate in ways if trip is not None and rate is not None]
    if not known:
        return UNKNOWN
    return max(trip for trip, _ in known), min(rate for _, rate in known)


MUCH_SLOWER = 1.5
"""Shards whose calls take so many times as long as predicted are shown."""


def _dispatch(report: DispatchReport, age_s: float) -> DispatchView:
    return DispatchView(
        told_ago_s=round(age_s, 3),
        calls=report.calls,
        starved=report.starved,
        resent=report.resent,
        failed=report.failed,
        sent=DurationsView(counts=list(report.sent.counts), sum_s=report.sent.sum_s),
        waited=DurationsView(counts=list(report.waited.counts), sum_s=report.waited.sum_s),
        served=DurationsView(counts=list(report.served.counts), sum_s=report.served.sum_s),
        shards=[
            ShardSeenView(
                id=shard.id,
                scale=round(shard.scale, 3),
                is_late=shard.is_late,
                late=shard.late,
                refused=shard.refused,
                lost=shard.lost,
            )
            for shard in report.shards
            if shard.is_late
            or shard.late + shard.refused + shard.lost
            or shard.scale >= MUCH_SLOWER
        ],
    )


def placement_view(state: State) -> PlacementView:
    """The epoch's copies; before the first one nothing is placed."""
    intent = state.intent
    copies: Copies = intent.epoch.copies if intent.epoch else {}
    counts = copies_per_key(copies)
    layers = sorted({key.group for key in intent.keys})
    experts = max((key.number for key in intent.keys), default=-1) + 1
    rows = {layer: [0] * experts for layer in layers}
    for key, number in counts.items():
        rows[key.group][key.number] = number
    by_shard = {id: _loss(copies, [id]) for id in sorted(copies)}
    by_node = {node: _loss(copies, ids) for node, ids in _groups(state, copies, "node").items()}
    by_pool = {pool: _loss(copies, ids) for pool, ids in _groups(state, copies, "pool").items()}
    placed = bool(copies)
    return PlacementView(
        epoch=_epoch(intent.epoch.id) if intent.epoch else None,
        layers=layers,
        experts=experts,
        shards={id: _by_layer(keys) for id, keys in sorted(copies.items())},
        copies=rows,
        least_copies=min((counts[key] for key in intent.keys), default=0),
        loss_of_shard=by_shard,
        loss_of_node=by_node,
        loss_of_pool=by_pool,
        survives_any_shard=placed and not any(loss.experts for loss in by_shard.values()),
        survives_any_node=placed and not any(loss.experts for loss in by_node.values()),
    )


def _is_settled(state: State, now_s: float) -> bool:
    intent, facts = state.intent, state.facts
    turn = Turn(state, now_s)
    if intent.epoch is None or intent.rolling or facts.request_verb or turn.recovering:
        return False
    for id, place in intent.places.items():
        if not place.failed and not (_is_ready(state, id) and place.wanted is Wanted.RUN):
            return False
    return is_settled(turn)


def _epoch(id: EpochId) -> EpochView:
    return EpochView(term=id.term, number=id.number)


def _place(
    state: State,
    place: Place,
    component: Component | None,
    pid: int | None,
    way: Way,
    old: Collection[str],
) -> PlaceView:
    said = component.said if component else None
    held = said.holdings if said else NO_KEYS
    weights = state.intent.epoch.weights if state.intent.epoch else {}
    return PlaceView(
        id=place.id,
        kind=place.kind,
        pool=place.pool,
        node=said.node if said else "",
        life=component.life if component else Life.STARTING,
        why=component.why if component else NOT_STARTED,
        generation=place.generation,
        restarts=place.restarts,
        wanted=place.wanted,
        cordoned=place.cordoned or bool(said and said.node in state.intent.cordoned_nodes),
        spare=place.spare,
        weight=weights.get(place.id, 1.0),
        incarnation=f"{said.incarnation:016x}" if said and said.incarnation else "",
        pid=pid,
        copies=len(held),
        loading=len(said.loading) if said else 0,
        held_bytes=said.bytes_of(held) if said and held else 0,
        capacity_bytes=said.capacity_bytes if said else 0,
        round_trip_us=way[0],
        bytes_per_s=way[1],
        outdated=place.id in old,
    )


def _pools(state: State) -> list[PoolView]:
    pools: dict[str, list[Place]] = {}
    for place in state.intent.places.values():
        pools.setdefault(place.pool or place.kind, []).append(place)
    views = []
    for id, places in sorted(pools.items()):
        limits = _limits(state, id)
        staying = [place for place in places if place.wanted is not Wanted.STOP]
        ready = [place for place in staying if _is_ready(state, place.id)]
        views.append(
            PoolView(
                id=id,
                kind=places[0].kind,
                size=len(staying),
                ready=len(ready),
                least=limits.least,
                most=limits.most,
            )
        )
    return views


def _limits(state: State, pool: str) -> PoolLimits:
    if pool == ENGINE_POOL:
        return state.settings.engines
    return state.settings.shard_pools.get(pool, PoolLimits())


def _is_ready(state: State, id: str) -> bool:
    component = state.facts.components.get(id)
    return component is not None and component.life is Life.READY


def _nodes(state: State, ways: Mapping[str, Way]) -> list[NodeView]:
    nodes: dict[str, list[str]] = {}
    for id in sorted(state.intent.places):
        component = state.facts.components.get(id)
        if component is not None and component.said.node:
            nodes.setdefault(component.said.node, []).append(id)
    cordoned = state.intent.cordoned_nodes
    for name in cordoned:
        nodes.setdefault(name, [])
    views = []
    for name, ids in sorted(nodes.items()):
        trip_us, rate = slowest_way(ways.get(id, UNKNOWN) for id in ids)
        views.append(
            NodeView(
                name=name,
                components=ids,
                cordoned=name in cordoned,
                round_trip_us=trip_us,
                bytes_per_s=rate,
            )
        )
    return views


def _rolling(rolling: Rolling | None) -> RollingView | None:
    if rolling is None:
        return None
    return RollingView(target=rolling.target, current=rolling.current, left=list(rolling.left))


def _transaction(state: State, now_s: float) -> TransactionView | None:
    running = state.intent.transaction
    if running is None:
        return None
    return TransactionView(
        id=running.id,
        kind=running.kind,
        phase=running.phase,
        batch=running.batch + 1,
        batches=len(running.batches),
        copies=sum(number_of(batch.add) for batch in running.batches),
        bytes=running.bytes,
        gain=running.gain,
        reason=running.reason,
        why_back=running.why_back,
        phase_s=max(0.0, now_s - state.facts.phase_since_s),
    )


def _planning(state: State, now_s: float) -> PlanningView | None:
    facts = state.facts
    if not facts.request:
        return None
    return PlanningView(
        request=facts.request,
        asked_ago_s=max(0.0, now_s - facts.request_sent_s),
        by_person=bool(facts.request_verb),
    )


def _by_layer(keys: Keys) -> dict[int, list[int]]:
    layers: dict[int, list[int]] = {}
    for key in sorted(keys):
        layers.setdefault(key.group, []).append(key.number)
    return layers


def _groups(state: State, copies: Copies, by: str) -> dict[str, list[str]]:
    """Shards with copies, by the node they are on or the pool they belong to."""
    groups: dict[str, list[str]] = {}
    for id in sorted(copies):
        place, component = state.intent.places.get(id), state.facts.components.get(id)
        if place is None or place.kind is not Kind.SHARD:
            continue
        name = place.pool if by == "pool" else component.said.node if component else ""
        if name:
            groups.setdefault(name, []).append(id)
    return groups


def _loss(copies: Copies, lost: Iterable[str]) -> LossView:
    """Keys that have no copy outside of `lost`."""
    lost = frozenset(lost)
    there = NO_KEYS.union(*(copies.get(id, NO_KEYS) for id in lost))
    elsewhere = NO_KEYS.union(*(keys for id, keys in copies.items() if id not in lost))
    gone = sorted(there - elsewhere)
    return LossView(experts=len(gone), some=[f"{key.group}/{key.number}" for key in gone[:NAMED]])
