"""A mesh of fake engines in one process, and a client that calls the gateway's application."""

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from actors.engine import asgi_bridge
from actors.engine.messages import EngineReply, HttpRequest, ResponseStart
from orchestrator.expert_load import ExpertLoad
from orchestrator.gateway.mesh import (
    EngineClient,
    EngineError,
    EngineInfo,
    EngineLostError,
    EngineStatus,
    MeshLostError,
)
from orchestrator.status import ComponentState, MeshStatus

JSON_HEADERS = ((b"content-type", b"application/json"), (b"server", b"inner"))
SSE_HEADERS = ((b"content-type", b"text/event-stream; charset=utf-8"),)

Script = list[EngineReply | EngineError | asyncio.Event]
"""What an engine does with a request: say a reply, fail, or wait for an event."""


def json_answer(body: bytes) -> Script:
    return [ResponseStart(200, JSON_HEADERS, body)]


@dataclass
class FakeEngine:
    """An engine that follows a script, the same for every request."""

    script: Script = field(default_factory=lambda: json_answer(b"{}"))
    state: ComponentState = ComponentState.READY
    max_running: int = 2
    metrics_page: str = ""
    lost: bool = False
    requests: list[HttpRequest] = field(default_factory=list)
    closed_early: int = 0

    async def handle(self, request: HttpRequest) -> AsyncGenerator[EngineReply, None]:
        if request.path == "/metrics":
            yield ResponseStart(200, (), self.metrics_page.encode())
            return
        self.requests.append(request)
        try:
            for step in self.script:
                if isinstance(step, EngineError):
                    raise step
                if isinstance(step, asyncio.Event):
                    await step.wait()
                else:
                    yield step
        except (asyncio.CancelledError, GeneratorExit):
            self.closed_early += 1
            raise

    async def status(self) -> EngineStatus:
        if self.lost:
            raise EngineLostError("it does not answer")
        return EngineStatus(self.state, self.max_running)


@dataclass
class FakeMesh:
    """A controller that knows the given engines, in order."""

    fakes: dict[str, FakeEngine]
    ready: bool = True
    reason: str = "all experts are placed"
    silent: bool = False
    times_asked: int = 0

    async def status(self) -> MeshStatus:
        self.times_asked += 1
        if self.silent:
            raise MeshLostError("no answer")
        return MeshStatus(
            mesh="test",
            model="tiny",
            ready=self.ready,
            reason=self.reason,
            epoch=1,
            router_mode="embedded",
            components=[],
        )

    async def expert_load(self) -> ExpertLoad:
        if self.silent:
            raise MeshLostError("no answer")
        return ExpertLoad("tiny", (0,), np.array([[3, 1]]), {"a-0": np.array([[3, 1]])})

    async def engines(self) -> list[EngineInfo]:
        if self.silent:
            raise MeshLostError("no answer")
        return [EngineInfo(name, fake.state, f"engine/{name}") for name, fake in self.fakes.items()]

    async def connect(self, engine: EngineInfo) -> EngineClient:
        return self.fakes[engine.id]


@dataclass(frozen=True)
class Answer:
    """A whole HTTP answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


async def call(
    app: asgi_bridge.AsgiApp,
    method: str,
    path: str,
    body: bytes = b"",
    headers: dict[str, str] | None = None,
) -> Answer:
    """Call an ASGI application as an HTTP server would."""
    lines = tuple((k.lower().encode(), v.encode()) for k, v in (headers or {}).items())
    request = HttpRequest(method, path, b"", lines, body)
    async with aclosing(asgi_bridge.call(app, request)) as stream:
        first, *rest = [item async for item in stream]
    assert isinstance(first, ResponseStart)
    names = {k.decode(): v.decode() for k, v in first.headers}
    return Answer(first.status, names, first.body + b"".join(c for c in rest if type(c) is bytes))
