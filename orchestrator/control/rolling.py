"""The rolling restart: one process after another is replaced, and what it held is served meanwhile.

A shard whose copies all have another one is ended at once and its successor loads them again. One
with the only copy of a key is emptied first, as if it were drained. Engines and routers finish what
they have begun while another one serves. The next follows when everything is as it was before.
The journal keeps how far it is, so a new controller goes on.
"""

from dataclasses import replace

from orchestrator.control.keys import NO_KEYS, Keys
from orchestrator.control.lifecycle import Kind, Life, Wanted
from orchestrator.control.load_policy import eligible
from orchestrator.control.repair import lost_keys
from orchestrator.control.sizes import refusal
from orchestrator.control.state import Place, Rolling, State
from orchestrator.control.supervision import end
from orchestrator.control.turn import Turn

SUBJECT = "rolling restart"

ORDER = (Kind.ROUTER, Kind.SHARD, Kind.ENGINE)
"""Kinds by how much waits for them."""


def begin_rolling(turn: Turn, target: str, ids: list[str]) -> None:
    turn.solved(SUBJECT)
    turn.change_intent(rolling=Rolling(target, tuple(ids)))
    turn.change_facts(rolling_since_s=turn.now_s)
    turn.note(SUBJECT, "begin", f"{target}: {len(ids)} to restart, one at a time")


def stop_rolling(turn: Turn, why: str) -> None:
    """Leave the rest as it is. A process that was already asked to end is still replaced."""
    rolling = turn.intent.rolling
    assert rolling is not None
    place = turn.intent.places.get(rolling.current)
    if place is not None and place.wanted is Wanted.RESTART:
        turn.change_place(place.id, wanted=Wanted.RUN)
    turn.change_intent(rolling=None)
    turn.note(SUBJECT, "end", f"{rolling.target}: {why}")
    turn.changed = True


def outdated(state: State) -> list[str]:
    """Components that run and were started with other code or another config than one that would
    start now, as far as they say so."""
    expected, places = state.settings.origins, state.intent.places
    return sorted(
        id
        for id, component in state.facts.components.items()
        if id in places
        and component.said.incarnation
        and component.said.origin != expected.get(places[id].pool, component.said.origin)
    )


def in_order(turn: Turn, ids: list[str]) -> list[str]:
    places = turn.intent.places
    return sorted(ids, key=lambda id: ORDER.index(places[id].kind))


def cannot_spare(turn: Turn, id: str) -> str:
    """Why this component cannot be restarted; empty if it can."""
    place = turn.intent.places[id]
    if place.kind is Kind.ROUTER:
        return ""  # engines dispatch themselves while they have none
    if place.kind is Kind.SHARD:
        alone = _alone(turn, id)
        why = refusal(turn, [id]) if alone else ""
        return f"{id} holds the only copy of {len(alone)} experts: {why}" if why else ""
    others = [
        other
        for other, component in turn.facts.components.items()
        if other != id
        and turn.intent.places[other].kind is place.kind
        and component.life is Life.READY
        and turn.intent.places[other].wanted is Wanted.RUN
    ]
    if others:
        return ""
    return f"{id} is the last {place.kind} that is ready: scale {place.pool or place.kind} up first"


def roll(turn: Turn) -> None:
    """Take the rolling restart as far as the facts allow."""
    rolling = turn.intent.rolling
    if rolling is None or turn.recovering:
        return
    since_s = max(turn.facts.rolling_since_s, turn.facts.started_s)
    if rolling.current:
        _look_after(turn, rolling)
    elif not rolling.left:
        stop_rolling(turn, "done")
        return
    elif is_settled(turn):
        _next(turn, rolling)
    if turn.intent.rolling is rolling and turn.now_s - since_s >= turn.settings.rolling_limit_s:
        what = rolling.current or rolling.left[0]
        why = turn.facts.problems.get(SUBJECT, "the mesh did not settle")
        text = f"given up at {what} after {turn.settings.rolling_limit_s:g} s: {why}"
        stop_rolling(turn, text)
        turn.problem(SUBJECT, text)


def _next(turn: Turn, rolling: Rolling) -> None:
    id, *rest = rolling.left
    place = turn.intent.places.get(id)
    if place is None or place.wanted is not Wanted.RUN or place.failed:
        turn.note(SUBJECT, "skip", f"{id} is not to run: left out")
        _go_on(turn, replace(rolling, left=tuple(rest)))
        return
    if turn.facts.components[id].life is not Life.READY:
        return  # it is being replaced anyway
    why = cannot_spare(turn, id)
    if why:
        turn.problem(SUBJECT, f"waits: {why}")
        return
    turn.solved(SUBJECT)
    _go_on(turn, replace(rolling, left=tuple(rest), current=id, generation=place.generation))
    _restart(turn, place)


def _restart(turn: Turn, place: Place) -> None:
    if place.kind is not Kind.SHARD or _alone(turn, place.id):
        # Serves on until no epoch names it, then ends: `supervision` does both.
        turn.change_place(place.id, wanted=Wanted.RESTART)
        turn.changed = True
    else:
        end(turn, place.id, f"{SUBJECT}; every copy has another one", kill=False)


def _look_after(turn: Turn, rolling: Rolling) -> None:
    """Wait for the successor; begin again where nothing of the restart is left to be seen."""
    id = rolling.current
    place, component = turn.intent.places.get(id), turn.facts.components.get(id)
    if place is None or component is None or place.failed or place.wanted is Wanted.STOP:
        why = place.failed if place and place.failed else "no longer wanted"
        stop_rolling(turn, f"ended at {id}: {why}")
    elif place.generation > rolling.generation:
        if component.life is Life.READY and is_settled(turn):
            turn.note(SUBJECT, "restarted", f"{id} generation {place.generation} serves")
            _go_on(turn, replace(rolling, current=""))
    elif _runs_on(turn, id):
        _go_on(turn, replace(rolling, current="", left=(id, *rolling.left)))


def _runs_on(turn: Turn, id: str) -> bool:
    """Its end is not asked for: an earlier controller did not get so far, or a person said no."""
    component = turn.facts.components[id]
    wanted = turn.intent.places[id].wanted
    return component.life is Life.READY and component.ending_s is None and wanted is Wanted.RUN


def _go_on(turn: Turn, rolling: Rolling) -> None:
    turn.change_intent(rolling=rolling)
    turn.change_facts(rolling_since_s=turn.now_s)
    turn.changed = True


def _alone(turn: Turn, id: str) -> Keys:
    """Keys of which no other shard has a copy that dispatchers know of."""
    others = [keys for other, keys in turn.named_and_held().items() if other != id]
    return (turn.holdings(id) & turn.intent.keys) - NO_KEYS.union(*others)


def is_settled(turn: Turn) -> bool:
    """Nothing moves, nothing is missing, and all that is planned is there."""
    intent = turn.intent
    if intent.transaction is not None or lost_keys(turn):
        return False
    shards = eligible(turn)
    if intent.keys and frozenset(shards) != intent.planned_for:
        return False
    return all(_is_whole(turn, id, intent.planned.get(id, NO_KEYS)) for id in shards)


def _is_whole(turn: Turn, id: str, planned: Keys) -> bool:
    component = turn.facts.components[id]
    return component.life is Life.READY and planned <= component.said.holdings
