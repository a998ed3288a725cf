"""What the engines have to do together. Pure."""

from collections.abc import Iterable

from actors.descriptions import EngineDescription, Said
from orchestrator.control.state import EngineLoad


def engine_load(said: Iterable[Said | None]) -> EngineLoad:
    """Sums over the engines, and the fullest KV cache."""
    engines = [one for one in said if isinstance(one, EngineDescription)]
    return EngineLoad(
        waiting=sum(engine.waiting for engine in engines),
        running=sum(engine.running for engine in engines),
        kv_used=max((engine.kv_used for engine in engines), default=0.0),
    )
