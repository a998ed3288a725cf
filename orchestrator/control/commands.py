"""Commands to shards: one at a time each, repeated under the same id until the shard shows it."""

from dataclasses import replace

from orchestrator.control.actions import Action, Cancel, Prepare, Retire
from orchestrator.control.keys import NO_KEYS, Keys, name_some
from orchestrator.control.state import Command
from orchestrator.control.turn import Turn, settled

PREPARE, RETIRE, CANCEL = "prepare", "retire", "cancel"


def command(turn: Turn, shard: str, step: str, keys: Keys, transaction: int, reason: str) -> None:
    """Send a command, or send the same one again where it has shown no effect for a while."""
    component = turn.facts.components[shard]
    last = component.command
    if last is not None and not settled(component) and _same(last, step, keys, transaction):
        if turn.now_s - last.sent_s < turn.settings.retry_s:
            return
        sent = replace(last, sent_s=turn.now_s)
    else:
        sent = Command(turn.next_order(), step, transaction, keys, turn.now_s, reason)
    turn.change_component(shard, command=sent)
    turn.act(_action(turn, shard, sent))


def cancel(turn: Turn, shard: str, transaction: int, reason: str) -> None:
    """Make sure that nothing sent before still loads on the shard."""
    command(turn, shard, CANCEL, NO_KEYS, transaction, reason)


def failed(turn: Turn, shard: str, keys: Keys) -> bool:
    """Whether the last command was to prepare `keys` and ended without all of them."""
    component = turn.facts.components[shard]
    last = component.command
    return (
        last is not None
        and last.step == PREPARE
        and last.keys == keys
        and settled(component)
        and not keys <= component.said.holdings
    )


def _same(last: Command, step: str, keys: Keys, transaction: int) -> bool:
    return last.step == step and last.keys == keys and last.transaction == transaction


def _action(turn: Turn, shard: str, sent: Command) -> Action:
    generation = turn.facts.components[shard].generation
    id = f"{sent.step}/{shard}/{generation}/{sent.order.term}.{sent.order.number}"
    about = f"{sent.reason}: {name_some(sent.keys)}" if sent.keys else sent.reason
    if sent.step == PREPARE:
        return Prepare(
            id=id,
            transaction=sent.transaction,
            step=sent.step,
            reason=about,
            shard=shard,
            generation=generation,
            order=sent.order,
            keys=sent.keys,
            bytes_per_s=turn.settings.load_bytes_per_s,
        )
    if sent.step == RETIRE:
        return Retire(
            id=id,
            transaction=sent.transaction,
            step=sent.step,
            reason=about,
            shard=shard,
            generation=generation,
            order=sent.order,
            keys=sent.keys,
        )
    return Cancel(
        id=id,
        transaction=sent.transaction,
        step=sent.step,
        reason=about,
        shard=shard,
        generation=generation,
        order=sent.order,
    )
