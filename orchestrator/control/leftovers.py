"""Copies that nothing names any more, and commands of transactions that are over."""

from orchestrator.control import commands
from orchestrator.control.keys import NO_KEYS, Copies, all_keys, plus
from orchestrator.control.lifecycle import Life, Phase
from orchestrator.control.turn import Turn, settled


def clean_up(turn: Turn) -> None:
    """Drop copies that neither the epoch, the plan nor the transaction names: left by one that was
    cancelled or by an earlier controller. The only copy of a key stays: a repair will name it."""
    if turn.intent.epoch is None or turn.recovering:
        return  # before the first placement, what is loaded is what that need not load again
    scarce = turn.intent.keys - all_keys(turn.named_and_held())
    transaction = turn.intent.transaction
    adding: Copies = {}
    wanted = plus(turn.epoch_copies(), turn.intent.planned)
    if transaction is not None and transaction.phase is not Phase.ROLLING_BACK:
        adding = transaction.current.add
        wanted = plus(wanted, transaction.target)
    for id, component in turn.shards().items():
        if component.life is not Life.READY or id in adding:
            continue
        unnamed = component.said.holdings - wanted.get(id, NO_KEYS) - scarce
        if transaction is not None and transaction.phase in (Phase.COMMITTING, Phase.RETIRING):
            unnamed -= transaction.current.drop.get(id, NO_KEYS)
        command = component.command
        if command is not None and not settled(component):
            if command.step == commands.RETIRE and not command.transaction:
                commands.command(turn, id, commands.RETIRE, command.keys, 0, command.reason)
            elif transaction is None:
                commands.cancel(turn, id, 0, "no transaction is under way")
        elif component.said.loading and transaction is None:
            commands.cancel(turn, id, 0, "no transaction is under way")
        elif unnamed:
            commands.command(turn, id, commands.RETIRE, unnamed, 0, "no epoch names these copies")
