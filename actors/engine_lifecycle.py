"""States of an engine and the changes allowed between them."""

from enum import StrEnum


class EngineState(StrEnum):
    STARTING = "starting"
    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    DEAD = "dead"


TRANSITIONS: dict[EngineState, frozenset[EngineState]] = {
    # `start` began; or `stop` came before it.
    EngineState.STARTING: frozenset({EngineState.LOADING, EngineState.DEAD}),
    # vLLM answered; or it failed to load.
    EngineState.LOADING: frozenset({EngineState.READY, EngineState.DEAD}),
    # `drain` was called; or the engine core died, or `stop` was called.
    EngineState.READY: frozenset({EngineState.DRAINING, EngineState.DEAD}),
    # A draining engine never comes back: a new one is started instead.
    EngineState.DRAINING: frozenset({EngineState.DEAD}),
    EngineState.DEAD: frozenset(),
}


def check_transition(old: EngineState, new: EngineState) -> None:
    """Raise `ValueError` where an engine may not go from `old` to `new`."""
    if new not in TRANSITIONS[old]:
        raise ValueError(f"an engine cannot go from {old} to {new}")
