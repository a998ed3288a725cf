"""How far a mesh is, for people: the step of its start, and whether it serves. Pure."""

from orchestrator.control.keys import NO_KEYS, Keys
from orchestrator.control.lifecycle import SERVING, Kind, Life, Wanted
from orchestrator.control.state import Component, Place, State
from orchestrator.errors import UserError
from orchestrator.status import LOAD_ENGINE

Step = tuple[str, str]
"""(step of the start, how far it is)."""


def step_of(state: State) -> Step:
    """What a start is at, or "Serve"."""
    shards = _of_kind(state, Kind.SHARD)
    ready = sum(c is not None and c.life is not Life.STARTING for _, c in shards)
    if state.intent.epoch is None and ready < len(shards):
        return "Start expert shards", f"{ready} of {len(shards)}"
    if state.intent.epoch is None and state.intent.transaction is None:
        return "Place experts", ""
    if state.intent.epoch is None:
        return "Load experts", ""
    if not all(_serves(c) for _, c in _of_kind(state, Kind.ROUTER)):
        return "Start the router", ""
    if not all(_serves(c) for _, c in _of_kind(state, Kind.ENGINE)):
        return LOAD_ENGINE, ""
    return "Serve", ""


def is_up(state: State) -> bool:
    """Everything that a start waits for is there."""
    return step_of(state)[0] == "Serve" and state.facts.published is not None


def readiness(state: State) -> tuple[bool, str]:
    """(whether a completion would succeed now, why or why not in one line)."""
    if state.intent.epoch is None:
        return False, "no plan epoch yet"
    lost = unserved(state)
    if lost:
        first = min(lost)
        shards = (_how_it_is(p, c) for p, c in _of_kind(state, Kind.SHARD) if not _serves(c))
        return False, (
            f"{len(lost)} experts have no living replica, first: layer {first.group} "
            f"expert {first.number} ({'; '.join(shards) or 'they are being loaded'})"
        )
    for kind in (Kind.ROUTER, Kind.ENGINE):
        members = _of_kind(state, kind)
        if members and not any(_serves(c) for _, c in members):
            return False, "; ".join(_how_it_is(p, c) for p, c in members)
    engines = _of_kind(state, Kind.ENGINE)
    if not engines:
        return False, "no engine was started yet"
    return True, f"{sum(_serves(c) for _, c in engines)} of {len(engines)} engines ready"


def unserved(state: State) -> Keys:
    """Keys that no shard holds which answers and is named for them."""
    epoch = state.intent.epoch
    if epoch is None:
        return state.intent.keys
    held = [
        c.said.holdings & epoch.copies.get(p.id, NO_KEYS)
        for p, c in _of_kind(state, Kind.SHARD)
        if c is not None and _serves(c)
    ]
    return state.intent.keys - NO_KEYS.union(*held)


def _of_kind(state: State, kind: Kind) -> list[tuple[Place, Component | None]]:
    """Places that are to run, with the process in each."""
    return [
        (place, state.facts.components.get(id))
        for id, place in state.intent.places.items()
        if place.kind is kind and place.wanted is Wanted.RUN and not place.failed
    ]


def _serves(component: Component | None) -> bool:
    return component is not None and component.life in SERVING


def _how_it_is(place: Place, component: Component | None) -> str:
    if component is None:
        return f"{place.kind} {place.id} is not started yet"
    text = f"{place.kind} {place.id} is {component.life}"
    return f"{text}: {component.why}" if component.why else text


def check_can_start(state: State) -> None:
    """Raises UserError where the shards' memory does not hold the experts, or a component died too
    often."""
    problem = state.facts.problems.get("plan", "")
    if problem and state.intent.epoch is None:
        raise UserError(
            problem.removeprefix("no plan: "), "raise `memory` of the pools or add shards"
        )
    for place in state.intent.places.values():
        if place.failed:
            raise UserError(f"{place.kind} {place.id} did not start: {place.failed}")
