"""What people ask for: each verb is done, or refused with the reason, in one answer."""

from orchestrator.control.actions import Answer
from orchestrator.control.events import VerbAsked
from orchestrator.control.keys import PlacedKey
from orchestrator.control.lifecycle import Kind, Life, Wanted
from orchestrator.control.load_policy import ask, eligible
from orchestrator.control.rolling import (
    begin_rolling,
    cannot_spare,
    in_order,
    outdated,
    stop_rolling,
)
from orchestrator.control.rules import broken
from orchestrator.control.sizes import ENGINE_POOL, members_of, only_copies, refusal, resize
from orchestrator.control.state import Rule
from orchestrator.control.targets import (
    NODE,
    Refused,
    component_named,
    expert_named,
    node_named,
    on_node,
    pools_named,
    unknown,
)
from orchestrator.control.turn import Turn

ALL = "all"
CHANGED = "changed"
"""What was started with other code or another config than it would be now."""


def take_verb(turn: Turn, asked: VerbAsked) -> None:
    """Do what was asked for, or refuse it."""
    try:
        if asked.verb not in VERBS:
            raise unknown("verb", asked.verb, VERBS)
        text = VERBS[asked.verb](turn, asked)
        done = True
    except Refused as error:
        text, done = str(error), False
    turn.changed = True
    if not text:
        return  # answered when the plan is made
    word = ("would be done" if asked.dry_run else "done") if done else "refused"
    turn.note(asked.target or asked.verb, asked.verb, f"asked for, {word}: {text}")
    turn.act(
        Answer(
            id=f"answer/{asked.request}",
            step=asked.verb,
            reason=text,
            request=asked.request,
            done=done,
        )
    )


# -- placement


def _rebalance(turn: Turn, asked: VerbAsked) -> str:
    _check_can_plan(turn, dry_run=asked.dry_run)
    ask(turn, "asked for", anew=False, dry_run=asked.dry_run, verb=asked.request)
    return ""


def _check_can_plan(turn: Turn, *, dry_run: bool) -> None:
    if turn.intent.epoch is None:
        raise Refused("nothing is placed yet: wait until the mesh serves")
    transaction = turn.intent.transaction
    if transaction is not None and not dry_run:
        raise Refused(
            f"transaction {transaction.id} ({transaction.kind}) is {transaction.phase}: "
            "wait until it ends"
        )
    absent = [id for id in eligible(turn) if turn.facts.components[id].life is not Life.READY]
    if absent:
        raise Refused(f"{', '.join(sorted(absent))} not ready: wait until the shards are")
    if turn.facts.request_verb:
        raise Refused("another plan that was asked for is being made: wait for its answer")


def _pin(turn: Turn, asked: VerbAsked) -> str:
    expert, _, pools = asked.target.partition(" ")
    key = expert_named(turn, expert)
    old = _rule_of(turn, key)
    rule = Rule(key, pools_named(turn, pools), old.banned)
    text = f"{key} is to live in {', '.join(sorted(rule.pinned))}"
    return _change_rule(turn, asked, rule, text)


def _ban(turn: Turn, asked: VerbAsked) -> str:
    expert, _, pools = asked.target.partition(" ")
    key = expert_named(turn, expert)
    old = _rule_of(turn, key)
    rule = Rule(key, old.pinned, old.banned | pools_named(turn, pools))
    text = f"{key} is not to live in {', '.join(sorted(rule.banned))}"
    return _change_rule(turn, asked, rule, text)


def _unpin(turn: Turn, asked: VerbAsked) -> str:
    key = expert_named(turn, asked.target)
    old = _rule_of(turn, key)
    if old == Rule(key):
        raise Refused(f"{key} is neither pinned nor banned")
    if not asked.dry_run:
        turn.change_intent(rules=turn.intent.rules - {old})
    return f"{key} may live anywhere again; the next plan may move it"


def _rule_of(turn: Turn, key: PlacedKey) -> Rule:
    return next((rule for rule in turn.intent.rules if rule.key == key), Rule(key))


def _change_rule(turn: Turn, asked: VerbAsked, rule: Rule, text: str) -> str:
    """Put the rule in force: at once where the placement keeps to it, else with a new plan."""
    left = [
        id
        for id, place in turn.intent.places.items()
        if place.kind is Kind.SHARD and place.wanted is Wanted.RUN and rule.allows(place.pool)
    ]
    if len(left) < turn.settings.min_copies:
        raise Refused(
            f"that leaves {rule.key} {len(left)} shards, and every expert has "
            f"{turn.settings.min_copies} copies: allow it another pool"
        )
    rules = frozenset(r for r in turn.intent.rules if r.key != rule.key) | {rule}
    before = turn.intent
    turn.change_intent(rules=rules)
    moves = broken(turn.intent, eligible(turn))
    turn.change_intent(rules=before.rules)
    if moves:
        _check_can_plan(turn, dry_run=asked.dry_run)
        ask(turn, text, anew=True, dry_run=asked.dry_run, verb=asked.request, rules=rules)
        return ""
    if not asked.dry_run:
        turn.change_intent(rules=rules)
    return f"{text}; it does already"


# -- sizes


def _scale(turn: Turn, asked: VerbAsked) -> str:
    pools = sorted({place.pool for place in turn.intent.places.values() if place.pool})
    if asked.target not in pools:
        raise unknown("pool", asked.target, pools)
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
    if asked.target.startswith(NODE):
        return _drain_node(turn, asked)
    id = component_named(turn, asked.target)
    _check_may_leave(turn, [id])
    if not asked.dry_run:
        turn.change_place(id, wanted=Wanted.STOP)
    return f"{id} drains, then ends"


def _drain_node(turn: Turn, asked: VerbAsked) -> str:
    node = node_named(turn, asked.target)
    ids = on_node(turn, node)
    _check_may_leave(turn, ids)
    if not asked.dry_run:
        turn.change_intent(cordoned_nodes=turn.intent.cordoned_nodes | {node})
        for id in ids:
            turn.change_place(id, wanted=Wanted.STOP)
    return f"{', '.join(ids) or 'nothing'} on {node}: drained, then ended; no new copies there"


def _check_may_leave(turn: Turn, ids: list[str]) -> None:
    """Raises Refused unless the mesh can do without all of these."""
    places = turn.intent.places
    shards = [id for id in ids if places[id].kind is Kind.SHARD]
    why = refusal(turn, shards) if shards else ""
    if why:
        alone = sum(only_copies(turn, id) for id in shards)
        raise Refused(f"{', '.join(shards)} holds the only copy of {alone} experts: {why}")
    for id in ids:
        place = places[id]
        others = [other for other in members_of(turn, place.pool) if other not in ids]
        if place.kind is not Kind.SHARD and not others:
            pool = place.pool or place.kind
            raise Refused(f"{id} is the last {place.kind}: scale {pool} up first")


def _undrain(turn: Turn, asked: VerbAsked) -> str:
    if not asked.target.startswith(NODE):
        ids = [component_named(turn, asked.target)]
        text = f"{ids[0]} stays"
    else:
        node = node_named(turn, asked.target)
        ids = on_node(turn, node)
        text = f"{', '.join(ids) or 'nothing'} on {node} stays"
        if not asked.dry_run:
            turn.change_intent(cordoned_nodes=turn.intent.cordoned_nodes - {node})
    if not asked.dry_run:
        for id in ids:
            turn.change_place(id, wanted=Wanted.RUN, cordoned=False)
    return text


def _cordon(turn: Turn, asked: VerbAsked) -> str:
    return _set_cordon(turn, asked, cordoned=True)


def _uncordon(turn: Turn, asked: VerbAsked) -> str:
    return _set_cordon(turn, asked, cordoned=False)


def _set_cordon(turn: Turn, asked: VerbAsked, *, cordoned: bool) -> str:
    what = "no new copies" if cordoned else "new copies again"
    if asked.target.startswith(NODE):
        node = node_named(turn, asked.target)
        if not asked.dry_run:
            nodes = turn.intent.cordoned_nodes
            turn.change_intent(cordoned_nodes=nodes | {node} if cordoned else nodes - {node})
        return f"shards on {node} get {what}"
    id = component_named(turn, asked.target)
    if turn.intent.places[id].kind is not Kind.SHARD:
        raise Refused(f"{id} is no shard: only shards hold copies")
    if not asked.dry_run:
        turn.change_place(id, cordoned=cordoned)
    return f"{id} gets {what}"


# -- processes


def _restart(turn: Turn, asked: VerbAsked) -> str:
    id = component_named(turn, asked.target)
    component = turn.facts.components.get(id)
    if component is None or component.life is not Life.FAILED:
        raise Refused(
            f"{id} was not given up: it is {component.life if component else 'new'}; "
            f"`rolling-restart {id}` replaces a process that runs"
        )
    if not asked.dry_run:
        turn.change_place(id, failed="", restarts=0)
        turn.solved(id)
    return f"{id} is started again"


def _rolling_restart(turn: Turn, asked: VerbAsked) -> str:
    if turn.intent.rolling is not None:
        raise Refused(
            f"{turn.intent.rolling.target} is being restarted: wait until that ends, or end it "
            "with `rolling-restart --stop`"
        )
    ids = in_order(turn, _restartable(turn, asked.target))
    if turn.intent.epoch is None:
        raise Refused("nothing is placed yet: wait until the mesh serves")
    for id in ids:
        why = cannot_spare(turn, id)
        if why:
            raise Refused(why)
    if not asked.dry_run:
        begin_rolling(turn, asked.target, ids)
    return f"{', '.join(ids)}: restarted one at a time, each when the one before serves"


def _restartable(turn: Turn, target: str) -> list[str]:
    places = turn.intent.places
    pools = {place.pool for place in places.values() if place.pool}
    if target in places:
        return [target]
    changed = outdated(turn.state) if target == CHANGED else []
    ids = sorted(
        id
        for id, place in places.items()
        if (target in (ALL, place.pool) or id in changed)
        and place.wanted is Wanted.RUN
        and not place.failed
    )
    if not ids and target == CHANGED:
        raise Refused("every process runs with the installed code and the config")
    if not ids:
        raise unknown("pool or component", target, [*pools, *places, ALL, CHANGED])
    return ids


def _stop_rolling_restart(turn: Turn, asked: VerbAsked) -> str:
    rolling = turn.intent.rolling
    if rolling is None:
        raise Refused("no rolling restart is under way")
    if not asked.dry_run:
        stop_rolling(turn, "ended as asked")
    return f"{len(rolling.left)} of {rolling.target} are left as they are"


VERBS = {
    "rebalance": _rebalance,
    "scale": _scale,
    "drain": _drain,
    "undrain": _undrain,
    "cordon": _cordon,
    "uncordon": _uncordon,
    "restart": _restart,
    "rolling-restart": _rolling_restart,
    "stop-rolling-restart": _stop_rolling_restart,
    "pin": _pin,
    "ban": _ban,
    "unpin": _unpin,
}
