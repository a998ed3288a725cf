"""A mesh of fake engines in one process, and a client that calls the gateway's application."""

import asyncio
import json
import re
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from actors.engine import asgi_bridge
from actors.messages import EngineReply, HttpRequest, ResponseStart
from orchestrator.api.models import ClusterView, EventView, PlacementView
from orchestrator.clients.mesh import (
    EngineClient,
    EngineError,
    EngineInfo,
    EngineLostError,
    EngineStatus,
    MeshLostError,
)
from orchestrator.expert_load import ExpertLoad
from orchestrator.status import ComponentState, ComponentStatus, MeshStatus
from orchestrator.traffic_load import KindLoad

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

    async def answer(self, request: HttpRequest) -> list[EngineReply]:
        return [reply async for reply in self.handle(request)]

    async def status(self) -> EngineStatus:
        if self.lost:
            raise EngineLostError("it does not answer")
        return EngineStatus(self.state, self.max_running, **figures_of(self.metrics_page))


def figures_of(metrics_page: str) -> dict[str, Any]:
    """Fields of `EngineStatus` as the page has them."""
    names = {
        "running": "num_requests_running",
        "waiting": "num_requests_waiting",
        "kv_used": "kv_cache_usage_perc",
        "generated": "generation_tokens_total",
        "prompted": "prompt_tokens_total",
    }
    found = dict(re.findall(r"^vllm:(\w+)(?:\{[^}]*\})? (\S+)", metrics_page, re.MULTILINE))
    return {field: float(found[name]) for field, name in names.items() if name in found}


def _place(id: str, kind: str, pool: str, life: str, why: str = "it answers") -> dict[str, Any]:
    return {
        "id": id, "kind": kind, "pool": pool, "node": "node-0", "life": life, "why": why,
        "generation": 1, "restarts": 0, "wanted": "run", "cordoned": False, "spare": False,
        "weight": 1.0, "incarnation": "00ff", "pid": 7, "copies": 2, "loading": 0,
        "held_bytes": 20, "capacity_bytes": 40,
    }  # fmt: skip


VIEW = ClusterView.model_validate(
    {
        "mesh": "test",
        "model": "tiny",
        "term": 2,
        "epoch": {"term": 2, "number": 5},
        "followed": True,
        "recovering": False,
        "places": [
            _place("a-0", "shard", "a", "ready"),
            _place("engine-0", "engine", "engine", "ready"),
            _place("engine-1", "engine", "engine", "suspect", "3 probes in a row"),
            _place("engine-2", "engine", "engine", "dead", "SIGKILL"),
        ],
        "pools": [{"id": "a", "kind": "shard", "size": 1, "ready": 1, "least": 1, "most": 0}],
        "nodes": [{"name": "node-0", "components": ["a-0", "engine-0"], "cordoned": False}],
        "transaction": None,
        "transactions": 3,
        "planning": None,
        "rolling": None,
        "rules": [],
        "problems": {},
        "dispatchers": [],
    }
)
PLACEMENT = PlacementView.model_validate(
    {
        "epoch": {"term": 2, "number": 5},
        "layers": [0],
        "experts": 2,
        "shards": {"a-0": {0: [0, 1]}},
        "copies": {0: [1, 1]},
        "least_copies": 1,
        "loss_of_shard": {"a-0": {"experts": 2, "some": ["0/0", "0/1"]}},
        "loss_of_node": {},
        "loss_of_pool": {},
        "survives_any_shard": False,
        "survives_any_node": False,
    }
)


@dataclass
class FakeMesh:
    """A controller that knows the given engines, in order."""

    fakes: dict[str, FakeEngine]
    ready: bool = True
    reason: str = "all experts are placed"
    silent: bool = False
    times_asked: int = 0
    asked: list[tuple[str, str, int, bool]] = field(default_factory=list)
    ended: list[tuple[str, int]] = field(default_factory=list)
    """Controllers that were ended: node, process id."""
    components: list[ComponentStatus] = field(default_factory=list)
    refuses: str = ""
    """Why it refuses every verb; empty if it does them."""
    lines: list[EventView] = field(default_factory=list)
    kinds: dict[str, KindLoad] = field(default_factory=dict)
    """Load of kinds of traffic."""
    wake_runner: Callable[[], None] = lambda: None

    async def wake_batch_runner(self) -> None:
        self.wake_runner()

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
            components=self.components,
        )

    async def expert_load(self) -> ExpertLoad:
        if self.silent:
            raise MeshLostError("no answer")
        return ExpertLoad("tiny", (0,), np.array([[3, 1]]), {"a-0": np.array([[3, 1]])})

    async def traffic_load(self, kind: str, content: str | None) -> KindLoad | None:
        self._speak()
        return self.kinds.get(kind) if content in (None, "text") else None

    async def view(self) -> ClusterView:
        self._speak()
        return VIEW

    async def placement(self) -> PlacementView:
        self._speak()
        return PLACEMENT

    async def history(self, after: int, limit: int) -> list[EventView]:
        self._speak()
        if after < 0:
            return self.lines[after:]
        return [line for line in self.lines if line.number > after][:limit]

    async def ask(self, verb: str, target: str, number: int, dry_run: bool) -> tuple[bool, str]:
        self._speak()
        self.asked.append((verb, target, number, dry_run))
        return not self.refuses, self.refuses or f"{verb} is done"

    def _speak(self) -> None:
        if self.silent:
            raise MeshLostError("no answer")

    async def engines(self) -> list[EngineInfo]:
        if self.silent:
            raise MeshLostError("no answer")
        return [EngineInfo(name, fake.state, f"engine/{name}") for name, fake in self.fakes.items()]

    async def end_controller(self, node: str, pid: int) -> None:
        self.ended.append((node, pid))

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
    """Call an ASGI application as an HTTP server would. path: with its query, if any."""
    lines = tuple((k.lower().encode(), v.encode()) for k, v in (headers or {}).items())
    path, _, query = path.partition("?")
    request = HttpRequest(method, path, query.encode(), lines, body)
    async with aclosing(asgi_bridge.call(app, request)) as stream:
        first, *rest = [item async for item in stream]
    assert isinstance(first, ResponseStart)
    names = {k.decode(): v.decode() for k, v in first.headers}
    return Answer(first.status, names, first.body + b"".join(c for c in rest if type(c) is bytes))
