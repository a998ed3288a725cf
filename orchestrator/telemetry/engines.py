"""The few figures of an engine that the page and the curves show."""

from dataclasses import dataclass
from typing import Self

from orchestrator.clients.mesh import EngineStatus


@dataclass(frozen=True, slots=True)
class EngineFigures:
    """running, waiting: requests inside vLLM. kv_used: part of the KV cache in use. generated,
    prompted: tokens since the engine's start."""

    running: float = 0.0
    waiting: float = 0.0
    kv_used: float = 0.0
    generated: float = 0.0
    prompted: float = 0.0

    @classmethod
    def of(cls, said: EngineStatus) -> Self:
        return cls(said.running, said.waiting, said.kv_used, said.generated, said.prompted)
