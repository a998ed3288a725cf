"""Lifecycles of components and of transactions: an enum and a table each; nothing else may happen.

The life of a copy is not stored: it follows from what shards say they hold and load.
"""

from enum import StrEnum


class Kind(StrEnum):
    """What a component does."""

    SHARD = "shard"
    ENGINE = "engine"
    ROUTER = "router"


class Wanted(StrEnum):
    """What should become of a place."""

    RUN = "run"
    STOP = "stop"
    RESTART = "restart"  # ends as with STOP, then runs again


class Life(StrEnum):
    """How the process that fills a place is."""

    STARTING = "starting"
    READY = "ready"
    SUSPECT = "suspect"
    DRAINING = "draining"
    STOPPED = "stopped"
    DEAD = "dead"
    FAILED = "failed"


LIVES: dict[Life, frozenset[Life]] = {
    Life.STARTING: frozenset(
        {
            Life.READY,  # it described itself
            Life.DEAD,  # it died, or took too long
            Life.STOPPED,  # no longer wanted before it was up
        }
    ),
    Life.READY: frozenset(
        {
            Life.SUSPECT,  # several probes in a row without an answer
            Life.DRAINING,  # no longer wanted; serves until others hold what it holds
            Life.DEAD,  # its process ended
        }
    ),
    Life.SUSPECT: frozenset(
        {
            Life.READY,  # it answered again
            Life.DRAINING,  # it answered again and is no longer wanted
            Life.DEAD,  # its process ended, or it was ended after the limit
        }
    ),
    Life.DRAINING: frozenset(
        {
            Life.READY,  # wanted again
            Life.SUSPECT,  # it stopped answering while it drained
            Life.STOPPED,  # it ended as asked
            Life.DEAD,  # it ended before it was drained
        }
    ),
    Life.DEAD: frozenset(
        {
            Life.STARTING,  # replaced by a new process in the same place
            Life.FAILED,  # died too often: nothing more is tried until a person asks
            Life.STOPPED,  # no longer wanted
        }
    ),
    Life.FAILED: frozenset(
        {
            Life.STARTING,  # a person asked to try again
            Life.STOPPED,  # no longer wanted
        }
    ),
    Life.STOPPED: frozenset(),
}

SERVING = frozenset({Life.READY, Life.DRAINING})
"""Lives in which a component's answers count on."""


class TransactionKind(StrEnum):
    """Why a placement changes."""

    PLACE = "place"
    REBALANCE = "rebalance"
    REPAIR = "repair"
    RESTORE = "restore"


class Phase(StrEnum):
    """How far a transaction is."""

    PLANNED = "planned"
    PREPARING = "preparing"
    COMMITTING = "committing"
    RETIRING = "retiring"
    ROLLING_BACK = "rolling back"
    DONE = "done"
    ROLLED_BACK = "rolled back"


PHASES: dict[Phase, frozenset[Phase]] = {
    Phase.PLANNED: frozenset(
        {
            Phase.PREPARING,  # what went before has settled
            Phase.ROLLING_BACK,  # a repair goes first, or a shard it needs is gone
        }
    ),
    Phase.PREPARING: frozenset(
        {
            Phase.COMMITTING,  # every new copy of the batch is loaded
            Phase.ROLLING_BACK,  # a load failed, took too long, or a repair goes first
        }
    ),
    Phase.COMMITTING: frozenset(
        {
            Phase.RETIRING,  # every dispatcher follows the new epoch, or was evicted
        }
    ),
    Phase.RETIRING: frozenset(
        {
            Phase.PREPARING,  # the next batch
            Phase.DONE,  # the last batch
            Phase.ROLLING_BACK,  # between batches, a repair goes first
        }
    ),
    Phase.ROLLING_BACK: frozenset(
        {
            Phase.ROLLED_BACK,  # what it loaded and no epoch names is gone, or left to clean up
        }
    ),
    Phase.DONE: frozenset(),
    Phase.ROLLED_BACK: frozenset(),
}


class ImpossibleTransition(AssertionError):
    """A decision that its lifecycle does not allow: a fault in the control plane itself."""


def check_life(subject: str, before: Life, after: Life) -> None:
    if after not in LIVES[before]:
        raise ImpossibleTransition(f"{subject}: {before} -> {after}")


def check_phase(transaction: int, before: Phase, after: Phase) -> None:
    if after not in PHASES[before]:
        raise ImpossibleTransition(f"transaction {transaction}: {before} -> {after}")
