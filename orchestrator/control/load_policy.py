"""When to plan, and whether a plan is worth its bytes.

A plan is asked for when the set of shards changed, when a person asks, and every few seconds for
the load; at most one at a time, and none while a transaction runs or an expert is lost. The load
alone starts a rebalance only where it saves enough of the experts' time (`least_gain`), saves more
within `payback_s` than loading the copies takes, and some time has passed since the last one.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from orchestrator.control.actions import Answer, MakePlan
from orchestrator.control.batching import NoWay, batches
from orchestrator.control.domains import domain_of, domains_of, kept_together
from orchestrator.control.keys import NO_KEYS, Copies, Keys, name_some, number_of
from orchestrator.control.lifecycle import Kind, Life, TransactionKind, Wanted
from orchestrator.control.plan_request import PlanRequest, Proposal, ShardRoom
from orchestrator.control.repair import lost_keys, rooms_of
from orchestrator.control.rules import broken, forbidden
from orchestrator.control.settings import Settings
from orchestrator.control.state import Batch, Rule
from orchestrator.control.transactions import begin
from orchestrator.control.turn import Turn, may_hold

TOGETHER = "shards came back in another failure domain, now one has"
REQUEST_TIMEOUT_S = 300.0
"""After this a plan that was asked for is asked for again."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """go: do it. reason: what was seen, decided, and what would have changed the decision."""

    go: bool
    reason: str
    planned: bool = True
    """There is a plan, followed or not."""


def worth(proposal: Proposal, load_s: float, settings: Settings) -> Verdict:
    """Whether a proposal for a changed load pays. load_s: predicted time of loading its copies."""
    if not proposal.bytes:
        return Verdict(False, f"keep the placement: {proposal.reason}")
    gain = 1 - proposal.balancedness / proposal.predicted
    saved_s = gain * settings.payback_s
    figures = (
        f"balancedness {proposal.balancedness:.3f} -> {proposal.predicted:.3f} "
        f"of {proposal.possible:.3f} possible, {gain:.1%} of the experts' time, "
        f"for {proposal.bytes} bytes in {load_s:.1f} s"
    )
    if gain < settings.least_gain:
        return Verdict(False, f"{figures}: kept, at least {settings.least_gain:.1%} would pay")
    if saved_s < load_s:
        return Verdict(
            False,
            f"{figures}: kept, it saves {saved_s:.1f} s within {settings.payback_s:g} s; more than "
            f"{load_s:.1f} s would pay",
        )
    return Verdict(True, f"{figures}; a gain below {settings.least_gain:.1%} would not have paid")


def take_load(
    turn: Turn, counts: NDArray[np.float64], traffic: str, busy: Mapping[str, float]
) -> None:
    """Take in one window of load."""
    if counts.sum() > 0:
        rows = turn.facts.rows + float(counts.mean())
        turn.change_facts(load=turn.facts.load.observe(counts, traffic), rows=rows)
        turn.changed = True
    elif traffic in turn.facts.load.kinds:
        turn.change_facts(load=turn.facts.load.quiet(traffic))
    turn.change_facts(busy=busy)


def consider(turn: Turn) -> None:
    """Ask for a plan where there is a reason to."""
    facts = turn.facts
    if turn.recovering or turn.intent.transaction is not None or not turn.intent.keys:
        return
    if facts.request and turn.now_s - facts.request_sent_s < REQUEST_TIMEOUT_S:
        return
    shards = eligible(turn)
    if not shards:
        turn.problem("plan", "no plan: no shard is left that may hold experts")
        return
    if not all(_stays(turn, id) for id in shards):
        return  # a replacement is under way; a place that fails for good is no longer eligible
    since_s = turn.now_s - facts.considered_s
    if "plan" in facts.problems and since_s < turn.settings.rebalance_cooldown_s:
        return
    if turn.intent.epoch is None or frozenset(shards) != turn.intent.planned_for:
        if since_s >= turn.settings.consider_s or facts.considered_s < facts.settled_s:
            ask(turn, _why_anew(turn, shards), anew=True)
    elif astray := broken(turn.intent, shards):
        if since_s >= turn.settings.consider_s or facts.considered_s < facts.settled_s:
            ask(turn, f"{name_some(astray)} is where it may not be", anew=True)
    elif together := _come_together(turn, shards):
        if since_s >= turn.settings.consider_s or facts.considered_s < facts.settled_s:
            ask(turn, f"{TOGETHER}: all copies of {name_some(together)}", anew=True)
    elif (
        since_s >= turn.settings.consider_s
        and turn.now_s - facts.settled_s >= turn.settings.rebalance_cooldown_s
        and facts.rows >= turn.settings.least_rows
        and not lost_keys(turn)
    ):
        turn.change_facts(rows=0.0)
        ask(turn, "the load is considered", anew=False)


def _come_together(turn: Turn, shards: list[str]) -> Keys:
    """Keys whose copies are in one failure domain since shards came back elsewhere."""
    if not turn.settings.domains or domains_of(turn, shards) == turn.facts.domains:
        return NO_KEYS
    together = kept_together(turn, turn.intent.planned)
    if not together:
        turn.change_facts(domains=domains_of(turn, shards))
    return together


def ask(
    turn: Turn,
    reason: str,
    *,
    anew: bool,
    dry_run: bool = False,
    verb: str = "",
    rules: frozenset[Rule] | None = None,
) -> None:
    """Ask for a plan. rules: to be in force if there is one, in place of those that are."""
    number = turn.facts.requests + 1
    load = turn.facts.load.forecast() if turn.facts.load.kinds else None
    named = turn.epoch_copies() or turn.serving_copies()
    turn.change_facts(
        requests=number,
        request=number,
        request_sent_s=turn.now_s,
        considered_s=turn.now_s,
        request_verb=verb,
        request_rules=rules,
    )
    plan = PlanRequest(
        keys=turn.intent.keys,
        shards={id: _room(turn, id) for id in eligible(turn) if turn.takes_copies(id)},
        current={id: keys for id, keys in named.items() if id in turn.facts.components},
        load=load,
        planned_load=turn.facts.planned_load,
        min_copies=turn.settings.min_copies,
        most_redundant=turn.settings.most_redundant,
        anew=anew,
        dry_run=dry_run,
        reason=reason,
        forbidden=forbidden(turn.intent, turn.intent.rules if rules is None else rules),
    )
    turn.act(
        MakePlan(
            id=f"plan/{turn.intent.term}.{number}",
            step="plan",
            reason=reason,
            request=number,
            plan=plan,
        )
    )


def take_plan(turn: Turn, request: int, proposal: Proposal | None, why: str) -> None:
    """Decide about a plan that was asked for."""
    if request != turn.facts.request:
        return
    verb, rules = turn.facts.request_verb, turn.facts.request_rules
    turn.change_facts(request=0, request_verb="", request_rules=None)
    turn.changed = True
    verdict = _judge(turn, proposal, why, asked=bool(verb))
    if rules is not None and proposal is not None and verdict.planned and not proposal.dry_run:
        turn.change_intent(rules=rules)
        turn.note("rules", "rules", f"{len(rules)} experts are pinned or banned")
    if verb:
        turn.act(
            Answer(
                id=f"answer/{verb}",
                step="answer",
                reason=verdict.reason,
                request=verb,
                done=verdict.planned,
            )
        )


def eligible(turn: Turn) -> list[str]:
    """Shards that plans count on."""
    return [
        id
        for id, place in turn.intent.places.items()
        if place.kind is Kind.SHARD
        and place.wanted is Wanted.RUN
        and not place.spare
        and not turn.cordoned(id)
        and not place.failed
        and id in turn.facts.components
    ]


def _stays(turn: Turn, id: str) -> bool:
    component = turn.facts.components[id]
    return component.life is Life.READY and component.ending_s is None


def _judge(turn: Turn, proposal: Proposal | None, why: str, *, asked: bool) -> Verdict:
    """Begin the transaction, or say why not. asked: by a person, who need not wait for a gain."""
    if proposal is None:
        return _dropped(turn, why, asked=asked)
    turn.solved("plan")
    target = _with_cordoned(turn, proposal.target)
    ready = {id for id in turn.facts.components if id in turn.intent.places}
    if not set(proposal.target) <= {id for id in ready if turn.takes_copies(id)}:
        return _dropped(turn, "its shards changed while it was made", asked=asked)
    try:
        way = _way(turn, target)
    except NoWay as error:
        return _dropped(turn, str(error), asked=asked)
    verdict = _verdict(turn, proposal, way, asked=asked)
    # Where there is no room to keep all copies apart, the same domains are no reason again.
    turn.change_facts(domains=domains_of(turn, eligible(turn)))
    if verdict.go and not proposal.dry_run:
        begin(
            turn,
            TransactionKind.REBALANCE if turn.intent.epoch else TransactionKind.PLACE,
            way,
            target,
            verdict.reason,
            gain=max(0.0, 1 - proposal.balancedness / proposal.predicted),
            shards=frozenset(eligible(turn)),
        )
        turn.change_facts(planned_load=proposal.load)
    elif proposal.bytes and not proposal.dry_run:
        turn.note("load", "consider", verdict.reason)
    return verdict


def _way(turn: Turn, target: Copies) -> tuple[Batch, ...]:
    """The batches that lead from what is held to `target`."""
    held = {
        id: c.said.holdings
        for id, c in turn.shards().items()
        if (turn.serves(c) and id in turn.epoch_copies()) or turn.takes_copies(id)
    }
    rooms = rooms_of(turn) | {id: _as_held(turn, id) for id in held if not turn.takes_copies(id)}
    return batches(held, target, rooms, turn.settings.load_bytes_per_s)


def _verdict(turn: Turn, proposal: Proposal, way: tuple[Batch, ...], *, asked: bool) -> Verdict:
    load_s = sum(batch.predicted_s for batch in way)
    verdict = worth(proposal, load_s, turn.settings)
    running = turn.intent.transaction
    if proposal.anew and proposal.reason.startswith(TOGETHER):
        verdict = _parts(turn, proposal)
    elif proposal.anew:
        verdict = Verdict(True, f"{proposal.reason}: balancedness {proposal.predicted:.3f}")
    elif asked and proposal.bytes:
        verdict = Verdict(True, f"asked for; {verdict.reason}")
    if proposal.dry_run:
        moves = sum(number_of(batch.add) for batch in way)
        return Verdict(True, f"would load {moves} copies in {load_s:.1f} s: {verdict.reason}")
    if running is not None:
        return Verdict(False, f"transaction {running.id} began meanwhile")
    return verdict


def _parts(turn: Turn, proposal: Proposal) -> Verdict:
    """Whether it keeps more copies apart than the plan does now."""
    before = len(kept_together(turn, turn.intent.planned))
    after = len(kept_together(turn, proposal.target))
    figures = f"{proposal.reason}: of {before} experts {after} stay so"
    return Verdict(after < before, figures if after < before else f"{figures}: kept as it is")


def _dropped(turn: Turn, why: str, *, asked: bool) -> Verdict:
    if not asked:  # who asked gets the answer; nothing is wrong with the mesh
        turn.problem("plan", f"no plan: {why}")
    return Verdict(False, f"no plan: {why}", planned=False)


def _with_cordoned(turn: Turn, target: Copies) -> dict[str, Keys]:
    """Cordoned shards keep what they hold: they get nothing new and go on serving."""
    kept = {
        id: keys & turn.holdings(id)
        for id, keys in turn.epoch_copies().items()
        if id in turn.intent.places
        and turn.cordoned(id)
        and turn.intent.places[id].wanted is Wanted.RUN
        and not turn.intent.places[id].failed
    }
    return {**target, **kept}


def _room(turn: Turn, id: str) -> ShardRoom:
    said = turn.facts.components[id].said
    weight = turn.facts.components[id].weight
    return ShardRoom(
        said.capacity_bytes, said.key_bytes, said.rate * weight, said.call_rows, domain_of(turn, id)
    )


def _as_held(turn: Turn, id: str) -> ShardRoom:
    """A shard that only gives copies up has room for what it has."""
    said = turn.facts.components[id].said
    held = said.bytes_of(may_hold(turn.facts.components[id])) if said.key_bytes else 0
    return ShardRoom(held, said.key_bytes, said.rate)


def _why_anew(turn: Turn, shards: list[str]) -> str:
    if turn.intent.epoch is None:
        return f"first placement, on {len(shards)} shards"
    come = sorted(set(shards) - turn.intent.planned_for)
    gone = sorted(turn.intent.planned_for - set(shards))
    parts = [f"{', '.join(ids)} {what}" for ids, what in ((come, "joined"), (gone, "left")) if ids]
    return "; ".join(parts)
