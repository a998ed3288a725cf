"""A gateway over HTTP whose mesh is the control plane's real core in a simulated world.

The simulation's clock goes on by a second whenever the mesh is looked at.
"""

import asyncio
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import uvicorn

from orchestrator.api.models import ClusterView, EventView, PlacementView
from orchestrator.api.views import cluster_view, placement_view
from orchestrator.control.actions import Note
from orchestrator.control.settings import Settings
from orchestrator.control.state import Intent
from orchestrator.gateway.app import build_app
from orchestrator.gateway.auth import digest
from orchestrator.gateway.config import GatewayConfig
from orchestrator.gateway.logs import LogSource
from tests.orchestrator.gateway.fakes import FakeEngine, FakeMesh
from tests.orchestrator.gateway.ray_fakes import free_port
from tests.sim.mesh import MemoryJournal, Shape, SimMesh

LOOK_S = 1.0
SHAPE = Shape(shards=4, gpus=2, engines=2, capacity=6)


class NotingJournal(MemoryJournal):
    """Keeps the history too."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[EventView] = []

    def write(self, intent: Intent, notes: Sequence[Note], wall_s: float) -> None:
        super().write(intent, notes, wall_s)
        for note in notes:
            self.lines.append(
                EventView(
                    number=len(self.lines) + 1,
                    wall_s=wall_s,
                    subject=note.subject,
                    step=note.step,
                    transaction=note.transaction,
                    reason=note.reason,
                    figures=dict(note.figures),
                )
            )


@dataclass
class CoreMesh(FakeMesh):
    """What the controller's actor does, without Ray."""

    fakes: dict[str, FakeEngine] = field(default_factory=dict)
    shape: Shape = SHAPE
    origins: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.journal = NotingJournal()
        settings = Settings(suspect_limit_s=8.0, stable_s=60.0, origins=self.origins)
        self.sim = SimMesh(0, self.shape, settings, open_journal=lambda: self.journal)
        self.sim.start_controller()
        self.sim.clock.run(40.0)
        self._requests = 0

    async def view(self) -> ClusterView:
        self._speak()
        self.sim.clock.run(self.sim.clock.now_s + LOOK_S)
        assert self.sim.state is not None
        return cluster_view(self.sim.state, self.sim.clock.now_s, mesh="sim", model="tiny")

    async def placement(self) -> PlacementView:
        self._speak()
        assert self.sim.state is not None
        return placement_view(self.sim.state)

    async def history(self, after: int, limit: int) -> list[EventView]:
        self._speak()
        lines = self.journal.lines
        return lines[after:] if after < 0 else lines[after : after + limit]

    async def ask(self, verb: str, target: str, number: int, dry_run: bool) -> tuple[bool, str]:
        self._speak()
        self._requests += 1
        request = str(self._requests)
        self.sim.ask(request, verb, target, number, dry_run)
        while request not in self.sim.answers:
            self.sim.clock.run(self.sim.clock.now_s + 0.1)
        return self.sim.answers[request], self.sim.texts[request]


@contextmanager
def over_http(
    mesh: FakeMesh,
    keys: Sequence[str] = (),
    admins: Sequence[str] = (),
    logs: LogSource | None = None,
) -> Iterator[str]:
    """The URL of a gateway in front of `mesh`."""
    port = free_port()
    config = GatewayConfig(mesh="sim", model_name="tiny", port=port)
    key_digests, admin_digests = frozenset(map(digest, keys)), frozenset(map(digest, admins))
    app = build_app(config, mesh, key_digests, admin_digests, logs)
    server = uvicorn.Server(
        uvicorn.Config(app, port=port, log_level="error", timeout_graceful_shutdown=1)
    )
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()))
    thread.start()
    end_s = time.monotonic() + 10
    while not server.started and time.monotonic() < end_s:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()
