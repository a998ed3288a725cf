"""What the gateway needs from the rest of the mesh, as two small protocols.

`RayMesh` (`ray_mesh`) is the real one; tests bring fakes.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol

from actors.engine.messages import EngineReply, HttpRequest
from orchestrator.status import ComponentState, MeshStatus


class EngineLostError(Exception):
    """The engine died, or cannot be reached; what it had not answered is lost."""


class MeshLostError(Exception):
    """The controller does not answer."""


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """One engine, as the controller knows it."""

    id: str
    state: ComponentState
    actor_name: str


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """What an engine says about itself."""

    state: ComponentState
    max_running: int
    """Sequences that it computes at once; more wait inside it."""


class EngineClient(Protocol):
    """A connection to one engine."""

    def handle(self, request: HttpRequest) -> AsyncIterator[EngineReply]:
        """Stream of replies (`actors.engine.messages`); closing it aborts the request.

        Raises `EngineLostError` at the point where the engine was lost.
        """
        ...

    async def status(self) -> EngineStatus:
        """Raises `EngineLostError`."""
        ...


class Mesh(Protocol):
    """The controller, and a way to its engines."""

    async def status(self) -> MeshStatus:
        """Raises `MeshLostError`."""
        ...

    async def engines(self) -> list[EngineInfo]:
        """Raises `MeshLostError`."""
        ...

    def connect(self, engine: EngineInfo) -> EngineClient:
        """Raises `EngineLostError` if there is no such actor."""
        ...
