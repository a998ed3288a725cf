"""What gateway and batch runner need of the rest of the mesh, as two small protocols.

`RayMeshClient` (`ray_mesh`) is the real one; tests bring fakes.
"""

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Protocol

from actors.messages import EngineReply, HttpRequest
from orchestrator.api.models import ClusterView, EventView, PlacementView
from orchestrator.expert_load import ExpertLoad
from orchestrator.status import ComponentState, MeshStatus
from orchestrator.traffic_load import KindLoad


class MeshLostError(Exception):
    """The controller does not answer."""


class EngineError(Exception):
    """The engine did not finish its answer."""


class EngineRefusedError(EngineError):
    """The engine took no part of the request: it drains, or is not there any more."""


class EngineLostError(EngineError):
    """The engine died, or cannot be reached: another may do better, unless the request did it."""


class EngineFailedError(EngineError):
    """The engine failed on this request, and would again."""


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
    running: int = 0
    """Sequences that it computes now, whoever sent them."""
    waiting: int = 0
    """Requests that wait inside it."""
    kv_used: float = 0.0
    """Part of its KV cache that is in use."""
    prompted: int = 0
    """Tokens of prompts since its start."""
    generated: int = 0
    """Tokens of answers since its start."""


class EngineClient(Protocol):
    """A connection to one engine."""

    def handle(self, request: HttpRequest) -> AsyncGenerator[EngineReply, None]:
        """Stream of replies (`actors.messages`); closing it aborts the request.

        Raises an `EngineError` at the point to which the answer got.
        """
        ...

    async def answer(self, request: HttpRequest) -> list[EngineReply]:
        """The same replies when all are there, at less cost; cancelling it aborts the request.

        Raises an `EngineError`.
        """
        ...

    async def status(self) -> EngineStatus:
        """Raises `EngineLostError`."""
        ...


class MeshClient(Protocol):
    """The controller, and a way to its engines."""

    async def status(self) -> MeshStatus:
        """Raises `MeshLostError`."""
        ...

    async def expert_load(self) -> ExpertLoad:
        """Raises `MeshLostError`."""
        ...

    async def traffic_load(self, kind: str, content: str | None) -> KindLoad | None:
        """None: there was no such traffic. Raises `MeshLostError`."""
        ...

    async def view(self) -> ClusterView:
        """Raises `MeshLostError`."""
        ...

    async def placement(self) -> PlacementView:
        """Raises `MeshLostError`."""
        ...

    async def history(self, after: int, limit: int) -> list[EventView]:
        """Lines after number `after`, oldest first; negative: the last `-after`.

        Raises `MeshLostError`."""
        ...

    async def ask(self, verb: str, target: str, number: int, dry_run: bool) -> tuple[bool, str]:
        """Whether a verb is done, and what is to be said about it. Raises `MeshLostError`."""
        ...

    async def engines(self) -> list[EngineInfo]:
        """Raises `MeshLostError`."""
        ...

    async def wake_batch_runner(self) -> None:
        """Have it look at the jobs now. Does nothing where it is away: it looks by itself."""
        ...

    async def end_controller(self, node: str, pid: int) -> None:
        """Kill its process, on the node of that host name. Does nothing where it is gone."""
        ...

    async def connect(self, engine: EngineInfo) -> EngineClient:
        """Raises `EngineLostError` if there is no such actor."""
        ...
