"""Fake actors of a mesh, and a private Ray session to run them in."""

import asyncio
import json
import os
import shutil
import socket
import tempfile
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from typing import Any

from actors.descriptions import EngineDescription
from actors.engine_lifecycle import EngineState
from actors.messages import EngineReply, HttpRequest, ResponseStart
from benchmarks.harness.child_process import environment
from orchestrator.clients.mesh import EngineInfo
from orchestrator.session.ray_session import RAY_ENVIRONMENT
from orchestrator.status import ComponentState
from tests.orchestrator.gateway.fakes import PLACEMENT, VIEW

NAMESPACE = "gateway-test"
CONTROLLER = "controller"


@contextmanager
def private_ray() -> Iterator[None]:
    """A Ray cluster of this process's own, gone afterwards."""
    import ray

    os.environ.pop("RAY_ADDRESS", None)
    # Short: the paths of Ray's Unix sockets may have 107 characters at most.
    directory = tempfile.mkdtemp(prefix="e")
    # Its workers inherit these; vLLM leaves sockets in the temporary folder.
    with environment(RAY_ENVIRONMENT | {"TMPDIR": directory}):
        ray.init(
            address="local",
            num_cpus=2,
            object_store_memory=128 << 20,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="error",
            namespace=NAMESPACE,
            _temp_dir=directory,
        )
    try:
        yield
    finally:
        ray.shutdown()
        shutil.rmtree(directory, ignore_errors=True)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def start_actor(actor_class: type, name: str, *arguments: Any, **options: Any) -> Any:
    """A named actor of `actor_class`, which runs async methods concurrently."""
    import ray

    options = {"num_cpus": 0, "max_concurrency": 100, **options}
    return ray.remote(actor_class).options(name=name, **options).remote(*arguments)


class FakeController:
    """Says that the mesh is ready and names the given engines."""

    def __init__(self, engines: list[str]) -> None:
        self._engines = engines
        self._lines: list[dict[str, Any]] = []

    async def status(self) -> dict[str, Any]:
        return {
            "mesh": "test",
            "model": "tiny",
            "ready": True,
            "reason": "all experts are placed",
            "epoch": 1,
            "router_mode": "embedded",
            "components": [],
        }

    async def view(self) -> dict[str, Any]:
        return VIEW.model_dump(mode="json")

    async def placement(self) -> dict[str, Any]:
        return PLACEMENT.model_dump(mode="json")

    async def history(self, after: int, limit: int) -> list[dict[str, Any]]:
        return [line for line in self._lines if line["number"] > after][:limit]

    async def ask(self, verb: str, target: str, number: int, dry_run: bool) -> tuple[bool, str]:
        """Refuses what is of no pool `a`; the history says what was done."""
        if not target.startswith("a"):
            return False, f"unknown component {target!r}"
        reason = f"{verb} {target} {number} {dry_run}"
        line = {"number": len(self._lines) + 1, "wall_s": 1.0, "subject": target, "step": verb}
        self._lines.append({**line, "transaction": 0, "reason": reason, "figures": {}})
        return True, reason

    async def engines(self) -> list[EngineInfo]:
        return [EngineInfo(name, ComponentState.READY, name) for name in self._engines]


class FakeEngine:
    """Answers with its name: as JSON, or as `n` events that come every `interval_s`."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._running = 0

    async def describe(self) -> EngineDescription:
        return EngineDescription(1, os.getpid(), "box", EngineState.READY, "", None, 0, 4)

    async def running(self) -> int:
        return self._running

    async def handle(self, request: HttpRequest) -> AsyncGenerator[EngineReply, None]:
        asked = json.loads(request.body or b"{}")
        self._running += 1
        try:
            if not asked.get("stream"):
                await asyncio.sleep(asked.get("interval_s", 0))
                body = json.dumps({"from": self._name}).encode()
                yield ResponseStart(200, ((b"content-type", b"application/json"),), body)
                return
            first = f"data: {self._name}\n\n".encode()
            yield ResponseStart(200, ((b"content-type", b"text/event-stream"),), first)
            for number in range(asked["n"]):
                await asyncio.sleep(asked["interval_s"])
                yield b"data: %d\n\n" % number
        finally:
            self._running -= 1
