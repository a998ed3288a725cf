"""What people ask for: each verb is done, or refused with the reason, in one answer."""

import difflib

from orchestrator.control.actions import Answer
from orchestrator.control.events import VerbAsked
from orchestrator.control.lifecycle import Kind, Life, Wanted
from orchestrator.control.load_policy import ask, eligible
from orchestrator.control.sizes import ENGINE_POOL, members_of, only_copies, refusal, resize
from orchestrator.control.turn import Turn


class Refused(Exception):
    """The verb cannot be done; the message says why and what would help."""


def take_verb(turn: Turn, asked: VerbAsked) -> None:
    """Do what was asked for, or refuse it."""
    try:
        if asked.verb not in _VERBS:
            raise Refused(_unknown("verb", asked.verb, list(_VERBS)))
        text = _VERBS[asked.verb](turn, asked)
        done = True
    except Refused as error:
        text, done = str(error), False
    turn.changed = True
    if not text:
        return  # answered when the plan is made
    turn.note(
        asked.target or asked.verb,
        asked.verb,
        f"asked for, {'done' if done else 'refused'}: {text}",
    )
    turn.act(
        Answer(
            id=f"answer/{asked.request}",
            step=asked.verb,
            reason=text,
            request=asked.request,
            done=done,
        )
    )


def _rebalance(turn: Turn, asked: VerbAsked) -> str:
    if turn.intent.epoch is None:
        raise Refused("nothing is placed yet: wait until the mesh serves")
    transaction = turn.intent.transaction
    if transaction is not None and not asked.dry_run:
        raise Refused(
            f"transaction {transaction.id} ({transaction.kind}) is {transaction.phase}: "
            "wait until it ends"
        )
    absent = [id for id in eligible(turn) if turn.facts.components[id].life is not Life.READY]
    if absent:
        raise Refused(f"{', '.join(sorted(absent))} not ready: wait until the shards are")
    if turn.facts.request_verb:
        raise Refused("another rebalance is being planned: wait for its answer")
    ask(turn, "asked for", anew=False, dry_run=asked.dry_run, verb=asked.request)
    return ""


def _scale(turn: Turn, asked: VerbAsked) -> str:
    pools = sorted({place.pool for place in turn.intent.places.values() if place.pool})
    if asked.target not in pools:
        raise Refused(_unknown("pool", asked.target, pools))
    members = members_of(turn, asked.target)
    if asked.number < 1:
        raise Refused(f"a pool has at least one member, {asked.number} were asked for")
    if asked.target != ENGINE_POOL:
        why = refusal(turn, members[asked.number :])
        if why and asked.number < len(members):
            raise Refused(why)
    text = f"{asked.target}: {len(members)} -> {asked.number}"
    if not asked.dry_run and asked.number != len(members):
        resize(turn, asked.target, asked.number, "asked for")
    return text


def _drain(turn: Turn, asked: VerbAsked) -> str:
    id = _known(turn, asked.target)
    place = turn.intent.places[id]
    if place.kind is Kind.SHARD:
        why = refusal(turn, [id])
        if why:
            raise Refused(f"{id} holds the only copy of {only_copies(turn, id)} experts: {why}")
    others = [other for other in members_of(turn, place.pool) if other != id]
    if place.kind is not Kind.SHARD and not others:
        raise Refused(f"{id} is the last {place.kind}: scale {place.pool} up first")
    if not asked.dry_run:
        turn.change_place(id, wanted=Wanted.STOP)
    return f"{id} drains, then ends"


def _undrain(turn: Turn, asked: VerbAsked) -> str:
    id = _known(turn, asked.target)
    if not asked.dry_run:
        turn.change_place(id, wanted=Wanted.RUN, cordoned=False)
    return f"{id} stays"


def _cordon(turn: Turn, asked: VerbAsked) -> str:
    id = _known(turn, asked.target)
    if not asked.dry_run:
        turn.change_place(id, cordoned=True)
    return f"{id} gets no new copies"


def _restart(turn: Turn, asked: VerbAsked) -> str:
    id = _known(turn, asked.target)
    component = turn.facts.components.get(id)
    if component is None or component.life is not Life.FAILED:
        raise Refused(f"{id} was not given up: it is {component.life if component else 'new'}")
    if not asked.dry_run:
        turn.change_place(id, failed="", restarts=0)
        turn.solved(id)
    return f"{id} is started again"


_VERBS = {
    "rebalance": _rebalance,
    "scale": _scale,
    "drain": _drain,
    "undrain": _undrain,
    "cordon": _cordon,
    "restart": _restart,
}


def _known(turn: Turn, id: str) -> str:
    if id not in turn.intent.places:
        raise Refused(_unknown("component", id, list(turn.intent.places)))
    return id


def _unknown(what: str, name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(known)[:8])}"
    return f"unknown {what} {name!r}: {hint}"
