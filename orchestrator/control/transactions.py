"""The transaction that changes the placement: one at a time, and every phase ends in time.

planned -> preparing -> committing -> retiring -> done, batch by batch; preparing -> rolling back ->
rolled back. Progress follows from what shards describe, not from answers to single commands, so a
lost, late or doubled message changes nothing.
"""

from dataclasses import replace

from orchestrator.control import commands, epochs
from orchestrator.control.actions import Evict
from orchestrator.control.keys import (
    Copies,
    Keys,
    all_keys,
    copies_per_key,
    minus,
    name_some,
    number_of,
    plus,
)
from orchestrator.control.lifecycle import Life, Phase, TransactionKind, check_phase
from orchestrator.control.state import (
    Batch,
    Dispatcher,
    Epoch,
    EpochId,
    Transaction,
)
from orchestrator.control.turn import Turn, may_hold, settled

FIRST_PAUSE_S = 1.0
"""Pause before the next repair after one that was rolled back; doubles with each."""

REPLACING = (TransactionKind.PLACE, TransactionKind.REBALANCE)
"""Kinds that change the plan; the others lead back to it."""


def begin(
    turn: Turn,
    kind: TransactionKind,
    batches: tuple[Batch, ...],
    target: Copies,
    reason: str,
    *,
    gain: float = 0.0,
    shards: frozenset[str] = frozenset(),
) -> None:
    """Start a transaction; none may be under way."""
    assert turn.intent.transaction is None, "one transaction at a time"
    number = turn.intent.transactions + 1
    batches = batches or (Batch({}, {}, 0.0),)  # nothing to load: only names change
    size = sum(
        turn.facts.components[shard].said.bytes_of(keys)
        for batch in batches
        for shard, keys in batch.add.items()
    )
    transaction = Transaction(
        number, kind, Phase.PLANNED, batches, target, reason, shards, bytes=size, gain=gain
    )
    turn.change_intent(transaction=transaction, transactions=number)
    turn.change_facts(phase_since_s=turn.now_s)
    seconds = sum(batch.predicted_s for batch in batches)
    turn.note(
        f"transaction {number}",
        Phase.PLANNED,
        f"{kind}: {reason} ({len(batches)} batches, {size} bytes, {seconds:.1f} s predicted)",
        number,
        {"bytes": size, "predicted_s": seconds, "gain": gain},
    )
    turn.changed = True


def preempt(turn: Turn, why: str) -> None:
    """End the transaction under way so that a repair can begin, unless it is past preparing: then
    its batch ends first, which is bounded."""
    transaction = turn.intent.transaction
    assert transaction is not None
    if transaction.phase in (Phase.PLANNED, Phase.PREPARING):
        _roll_back(turn, why)
    elif transaction.phase in (Phase.COMMITTING, Phase.RETIRING) and not transaction.why_back:
        turn.change_intent(transaction=replace(transaction, why_back=why))


def advance(turn: Turn) -> None:
    """Take the transaction as far as the facts allow."""
    if turn.recovering:
        return
    while (transaction := turn.intent.transaction) is not None:
        before = transaction
        _PHASES[transaction.phase](turn, transaction)
        if turn.intent.transaction is before:
            return


# -- phases


def _planned(turn: Turn, transaction: Transaction) -> None:
    """Wait until what was asked of the shards before has settled."""
    _to_batch(turn, transaction, 0)


def _preparing(turn: Turn, transaction: Transaction) -> None:
    batch = transaction.current
    ready = True
    for shard, keys in sorted(batch.add.items()):
        why = _cannot_load(turn, shard, keys)
        if why:
            _do_without(turn, transaction, shard, why)
            return
        component = turn.facts.components[shard]
        missing = keys - component.said.holdings
        if not missing:
            continue
        ready = False
        waiting = component.command is not None and not settled(component)
        if waiting and not _is_mine(turn, shard, transaction):
            commands.cancel(turn, shard, transaction.id, "a new transaction begins")
        elif waiting:
            assert component.command is not None
            commands.command(
                turn, shard, commands.PREPARE, component.command.keys, transaction.id, "load"
            )
        else:
            commands.command(turn, shard, commands.PREPARE, missing, transaction.id, "load")
    if ready:
        _commit(turn, transaction)
    elif _overdue(turn, batch.predicted_s):
        late = sorted(s for s, keys in batch.add.items() if keys - turn.holdings_or_none(s))
        _do_without(turn, transaction, late[0], f"loading took too long on {', '.join(late)}")


def _do_without(turn: Turn, transaction: Transaction, shard: str, why: str) -> None:
    """A shard cannot load its part. A repair goes on with what the others load, since every key
    counts for itself; any other transaction is rolled back."""
    left = {other: keys for other, keys in transaction.current.add.items() if other != shard}
    if transaction.kind is not TransactionKind.REPAIR or not left:
        _roll_back(turn, why)
        return
    batches = list(transaction.batches)
    batches[transaction.batch] = replace(transaction.current, add=left)
    turn.note(f"transaction {transaction.id}", "shrink", f"goes on without {shard}: {why}")
    turn.change_intent(transaction=replace(transaction, batches=tuple(batches)))


def _is_mine(turn: Turn, shard: str, transaction: Transaction) -> bool:
    command = turn.facts.components[shard].command
    return (
        command is not None
        and command.transaction == transaction.id
        and command.step == commands.PREPARE
    )


def _cannot_load(turn: Turn, shard: str, keys: Keys) -> str:
    """Why the batch cannot go on with this shard; empty if it can."""
    component = turn.facts.components.get(shard)
    if component is None or component.life is not Life.READY:
        return f"{shard} is {component.life if component else 'gone'}"
    command = component.command
    missing = keys - component.said.holdings
    if command is not None and commands.failed(turn, shard, command.keys) and missing:
        turn.change_component(shard, load_failures=component.load_failures + 1, command=None)
        why = component.said.failure or "the copies are not there"
        return f"{shard} could not load {name_some(missing)}: {why}"
    need = component.said.bytes_of(may_hold(component) | keys)
    if need > component.said.capacity_bytes:
        return f"{shard} has {component.said.capacity_bytes} bytes, the copies take {need}"
    return ""


def _commit(turn: Turn, transaction: Transaction) -> None:
    """Publish an epoch with the copies of this batch; dispatchers are waited for next."""
    batch = transaction.current
    last = transaction.batch + 1 == len(transaction.batches)
    there = {  # copies on the way to the target that no epoch named yet
        id: keys & turn.holdings_or_none(id) for id, keys in transaction.target.items()
    }
    before = plus(plus(turn.epoch_copies(), batch.add), there)
    copies = minus(before, batch.drop)
    alone = turn.intent.keys - all_keys(copies)
    if alone:  # what was to stand in for them is gone meanwhile
        copies = plus(copies, {id: keys & alone for id, keys in before.items()})
    if transaction.kind in REPLACING:
        turn.change_intent(planned=transaction.target, planned_for=transaction.shards)
        if last:  # also rids the epoch of shards that are gone
            copies = _as_held(turn, transaction.target)
            alone = turn.intent.keys - all_keys(copies)
            copies = plus(copies, {id: keys & alone for id, keys in before.items()})
    if turn.intent.epoch is not None or last:  # the first epoch has to name every key
        turn.change_intent(epoch=epochs.next_epoch(turn, copies))
    _to_phase(turn, Phase.COMMITTING, f"{number_of(batch.add)} copies loaded, epoch published")


def _as_held(turn: Turn, copies: Copies) -> dict[str, Keys]:
    """Of copies on shards that answer, those that are there; the others are restored later."""
    held = {}
    for id, keys in copies.items():
        component = turn.facts.components.get(id)
        ready = component is not None and component.life is Life.READY
        held[id] = keys & turn.holdings_or_none(id) if ready else keys
    return {id: keys for id, keys in held.items() if keys}


def _committing(turn: Turn, transaction: Transaction) -> None:
    epoch = turn.intent.epoch
    if epoch is None:
        _to_phase(turn, Phase.RETIRING, "nobody follows yet")
        return
    recovered_s = turn.facts.started_s + turn.settings.recovery_s
    if not turn.facts.dispatchers and turn.now_s < recovered_s:
        return  # they are about to connect to this new controller
    silent = [
        id for id, dispatcher in turn.facts.dispatchers.items() if not _follows(dispatcher, epoch)
    ]
    if turn.facts.published == epoch.id and not silent:
        _to_phase(turn, Phase.RETIRING, f"every dispatcher follows epoch {epoch.id}")
    elif _overdue(turn, 0.0, repair=transaction.kind is TransactionKind.REPAIR):
        for id in silent if turn.facts.published == epoch.id else ():
            _evict(turn, transaction, id, epoch.id)
        _to_phase(
            turn,
            Phase.RETIRING,
            f"went on without {len(silent)} dispatchers that do not follow epoch {epoch.id}; their "
            "calls for retired copies are sent elsewhere",
        )


def _follows(dispatcher: Dispatcher, epoch: Epoch) -> bool:
    return dispatcher.adopted is not None and dispatcher.adopted >= epoch.id


def _evict(turn: Turn, transaction: Transaction, dispatcher: str, epoch: EpochId) -> None:
    turn.act(
        Evict(
            id=f"evict/{dispatcher}/{epoch.term}.{epoch.number}",
            transaction=transaction.id,
            step="evict",
            reason=f"dispatcher {dispatcher} did not follow epoch {epoch} in time",
            dispatcher=dispatcher,
        )
    )


def _retiring(turn: Turn, transaction: Transaction) -> None:
    left = []
    for shard, keys in sorted(_may_go(turn, transaction.current.drop).items()):
        component = turn.facts.components.get(shard)
        if component is None or component.life is not Life.READY:
            continue  # what it still holds is cleaned up when it describes itself again
        held = keys & component.said.holdings
        if held or not settled(component):
            left.append(shard)
        if held:
            commands.command(turn, shard, commands.RETIRE, keys, transaction.id, "retire")
        elif not settled(component):
            commands.cancel(turn, shard, transaction.id, "an earlier command is unanswered")
    if left and not _overdue(turn, 0.0):
        return
    if left:
        turn.problem(
            f"transaction {transaction.id}",
            f"{', '.join(left)} did not retire copies in time; they are dropped when it answers",
        )
    if transaction.batch + 1 == len(transaction.batches):
        _finish(turn, transaction)
    elif transaction.why_back:
        _roll_back(turn, transaction.why_back)
    else:
        _to_batch(turn, transaction, transaction.batch + 1)


def _may_go(turn: Turn, drop: Copies) -> dict[str, Keys]:
    """Of the copies to drop, those that another one still stands in for: shards may have died
    since the batch was planned."""
    counts = copies_per_key(turn.serving_copies())
    going: dict[str, Keys] = {}
    for shard, keys in sorted(drop.items()):
        spare = frozenset(
            key for key in keys if counts[key] > 1 or key not in turn.holdings_or_none(shard)
        )
        counts.subtract(spare & turn.holdings_or_none(shard))
        going[shard] = spare
    return going


def _to_batch(turn: Turn, transaction: Transaction, batch: int) -> None:
    _to_phase(
        turn,
        Phase.PREPARING,
        f"batch {batch + 1} of {len(transaction.batches)}: "
        f"{number_of(transaction.batches[batch].add)} copies to load",
    )
    turn.change_intent(transaction=replace(_running(turn), batch=batch))


def _roll_back(turn: Turn, why: str) -> None:
    _to_phase(turn, Phase.ROLLING_BACK, why)
    turn.change_intent(transaction=replace(_running(turn), why_back=why))


def _rolling_back(turn: Turn, transaction: Transaction) -> None:
    """Stop what still loads. Copies that are loaded already are dropped by `clean_up`."""
    left = []
    for shard in transaction.current.add:
        component = turn.facts.components.get(shard)
        if component is None or component.life is not Life.READY:
            continue
        if not settled(component):
            left.append(shard)
            commands.cancel(turn, shard, transaction.id, transaction.why_back)
    if left and not _overdue(turn, 0.0):
        return
    _finish(turn, transaction)


_PHASES = {
    Phase.PLANNED: _planned,
    Phase.PREPARING: _preparing,
    Phase.COMMITTING: _committing,
    Phase.RETIRING: _retiring,
    Phase.ROLLING_BACK: _rolling_back,
}


def _finish(turn: Turn, transaction: Transaction) -> None:
    back = transaction.phase is Phase.ROLLING_BACK
    text = f"{transaction.kind}: {transaction.why_back or 'rolled back' if back else 'done'}"
    _to_phase(turn, Phase.ROLLED_BACK if back else Phase.DONE, text)
    failures = turn.facts.failures + 1 if back else 0
    pause_s = FIRST_PAUSE_S * 2.0 ** min(failures - 1, 16) if failures > 1 else 0.0
    turn.change_facts(
        settled_s=turn.now_s,
        failures=failures,
        not_before_s=turn.now_s + min(pause_s, turn.settings.longest_pause_s),
    )
    turn.solved(f"transaction {transaction.id}")
    planned = turn.intent.planned
    if back and transaction.kind in REPLACING and transaction.batch:
        # Batches that were committed stay: from here on they are the plan.
        planned = turn.epoch_copies()
    turn.change_intent(transaction=None, planned=planned)


def _running(turn: Turn) -> Transaction:
    assert turn.intent.transaction is not None
    return turn.intent.transaction


def _to_phase(turn: Turn, phase: Phase, text: str) -> None:
    transaction = _running(turn)
    check_phase(transaction.id, transaction.phase, phase)
    lasted_s = turn.now_s - turn.facts.phase_since_s
    turn.note(
        f"transaction {transaction.id}",
        phase,
        f"{phase} (after {lasted_s:.1f} s {transaction.phase}): {text}",
        transaction.id,
        {"lasted_s": lasted_s},
    )
    turn.change_intent(transaction=replace(transaction, phase=phase))
    turn.change_facts(phase_since_s=turn.now_s)
    turn.changed = True


def _overdue(turn: Turn, predicted_s: float, *, repair: bool = False) -> bool:
    limit_s = turn.settings.phase_factor * predicted_s + turn.settings.phase_extra_s
    if repair:
        limit_s = turn.settings.repair_adoption_s
    return turn.now_s - turn.facts.phase_since_s >= limit_s
