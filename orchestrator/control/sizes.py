"""Applies the scalers' and people's sizes: places are added to a pool, or asked to leave it."""

from orchestrator.control.keys import NO_KEYS
from orchestrator.control.lifecycle import Kind, Life, Wanted
from orchestrator.control.scaling import Size, engines_wanted, shards_wanted
from orchestrator.control.state import NEVER, Place
from orchestrator.control.turn import Turn

ENGINE_POOL = "engine"


def scale(turn: Turn) -> None:
    """Let the scalers of pools that have limits decide; those without stay as they are."""
    if turn.recovering or turn.intent.transaction is not None:
        return
    for pool, limits in turn.settings.shard_pools.items():
        members = members_of(turn, pool)
        seen = [turn.facts.busy[id] for id in members if id in turn.facts.busy]
        if limits.most and seen and _steady(turn, members):
            since_s = turn.now_s - turn.facts.scaled_s.get(pool, NEVER)
            busy = sum(seen) / len(seen)
            _apply(turn, pool, shards_wanted(len(members), busy, limits, since_s), len(members))
    engines = members_of(turn, ENGINE_POOL)
    limits = turn.settings.engines
    if limits.most and engines and _steady(turn, engines):
        since_s = turn.now_s - turn.facts.scaled_s.get(ENGINE_POOL, NEVER)
        size = engines_wanted(len(engines), turn.facts.engine_load, limits, since_s)
        _apply(turn, ENGINE_POOL, size, len(engines))


def members_of(turn: Turn, pool: str) -> list[str]:
    """Places of a pool that are to run, in the order of their numbers."""
    members = [
        id
        for id, p in turn.intent.places.items()
        if p.pool == pool and p.wanted is Wanted.RUN and not p.spare
    ]
    return sorted(members, key=_number)


def resize(turn: Turn, pool: str, number: int, reason: str) -> None:
    """Add places, or ask the last ones to leave."""
    members = members_of(turn, pool)
    kind = turn.intent.places[members[0]].kind if members else Kind.SHARD
    for id in members[number:]:
        turn.change_place(id, wanted=Wanted.STOP)
    used = set(turn.intent.places)
    fresh = (f"{pool}-{n}" for n in range(len(used) + number + 1))
    for id in [id for id in fresh if id not in used][: max(0, number - len(members))]:
        turn.change_intent(places={**turn.intent.places, id: Place(id, kind, pool)})
    turn.change_facts(scaled_s={**turn.facts.scaled_s, pool: turn.now_s})
    turn.note(pool, "scale", f"{pool}: {len(members)} -> {number}: {reason}")
    turn.changed = True


def refusal(turn: Turn, leaving: list[str]) -> str:
    """Why these shards cannot leave; empty if the others have room for everything."""
    if not turn.intent.keys:
        return ""
    room = 0
    for id, component in turn.shards().items():
        place = turn.intent.places[id]
        stays = id not in leaving and place.wanted is Wanted.RUN and not place.failed
        if stays and component.said.key_bytes:
            size = max(component.said.key_bytes.values())
            room += max(0, component.said.capacity_bytes // size - 1)
    need = len(turn.intent.keys) * turn.settings.min_copies
    if room >= need:
        return ""
    return (
        f"the shards that stay have room for {room} copies, {need} are needed "
        f"({turn.settings.min_copies} of each of {len(turn.intent.keys)} experts)"
    )


def only_copies(turn: Turn, id: str) -> int:
    """Keys of which this shard has the only copy that can be counted on."""
    others = [keys for other, keys in turn.serving_copies().items() if other != id]
    return len((turn.holdings(id) & turn.intent.keys) - NO_KEYS.union(*others))


def _apply(turn: Turn, pool: str, size: Size, number: int) -> None:
    if size.number == number:
        return
    if size.number < number and pool != ENGINE_POOL:
        why = refusal(turn, members_of(turn, pool)[size.number :])
        if why:
            turn.problem(f"pool {pool}", f"{size.reason}, but {why}")
            return
    turn.solved(f"pool {pool}")
    resize(turn, pool, size.number, size.reason)


def _steady(turn: Turn, members: list[str]) -> bool:
    """One change in flight per pool: what was added is up, what was to leave is gone."""
    pools = {turn.intent.places[id].pool for id in members}
    return all(
        turn.facts.components[id].life is Life.READY
        for id, place in turn.intent.places.items()
        if place.pool in pools and id in turn.facts.components and not place.failed
    )


def _number(id: str) -> int:
    digits = id.rpartition("-")[2]
    return int(digits) if digits.isdigit() else 0
