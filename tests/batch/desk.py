"""Gateway and batch runner over fake engines, in a thread of this process, behind a real socket."""

import asyncio
import contextlib
import json
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai
import uvicorn

from actors.messages import EngineReply, HttpRequest, ResponseStart
from actors.traffic import kind_in
from orchestrator.batch.ledger import Ledger, open_ledger
from orchestrator.batch.runner import Runner
from orchestrator.batch.settings import BatchSettings
from orchestrator.clients.mesh import EngineLostError, EngineStatus
from orchestrator.config.batch import BatchConfig
from orchestrator.gateway.app import build_app
from orchestrator.gateway.config import GatewayConfig
from orchestrator.status import ComponentState
from tests.orchestrator.gateway.fakes import FakeMesh
from tests.orchestrator.gateway.ray_fakes import free_port

MODEL = "tiny"
CHAT = "/v1/chat/completions"


@dataclass
class Engine:
    """Answers with the request's content; `behave` may do something else first."""

    behave: Callable[[dict[str, Any]], EngineReply | Exception | None] = lambda _: None
    max_running: int = 8
    delay_s: float = 0.0
    seen: list[dict[str, Any]] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)
    """Of traffic, of each of `seen`."""
    running: int = 0
    most_running: int = 0
    state: ComponentState = ComponentState.READY

    async def handle(self, request: HttpRequest) -> AsyncGenerator[EngineReply, None]:
        if request.path == "/metrics":
            yield ResponseStart(200, (), b"")
            return
        body = json.loads(request.body)
        self.seen.append(body)
        self.kinds.append(kind_in(request.headers))
        self.running += 1
        self.most_running = max(self.running, self.most_running)
        try:
            await asyncio.sleep(self.delay_s)
            said = self.behave(body)
            if isinstance(said, Exception):
                raise said
            yield said if said is not None else answer(body)
        finally:
            self.running -= 1

    async def answer(self, request: HttpRequest) -> list[EngineReply]:
        return [reply async for reply in self.handle(request)]

    async def status(self) -> EngineStatus:
        return EngineStatus(self.state, self.max_running, self.running)


def answer(body: dict[str, Any], status: int = 200) -> ResponseStart:
    text = body["messages"][-1]["content"]
    value = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": MODEL,
        "choices": [
            {
                "index": 0,
                "finish_reason": "stop",
                "message": {"role": "assistant", "content": f"echo {text}"},
            }
        ],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
    }
    headers = ((b"content-type", b"application/json"),)
    return ResponseStart(status, headers, json.dumps(value).encode())


def lost(_: dict[str, Any]) -> EngineLostError:
    return EngineLostError("it died")


def line(custom_id: str, content: str = "hi", **changes: Any) -> str:
    body = {"model": MODEL, "messages": [{"role": "user", "content": content}]}
    value = {"custom_id": custom_id, "method": "POST", "url": CHAT, "body": body}
    return json.dumps(value | changes)


@dataclass
class Desk:
    """A client of the gateway, and the ledger behind it."""

    url: str
    client: openai.OpenAI
    ledger: Ledger
    settings: BatchSettings
    mesh: FakeMesh

    def submit(self, lines: list[str], **arguments: Any) -> Any:
        file = self.client.files.create(
            file=("input.jsonl", ("\n".join(lines) + "\n").encode()), purpose="batch"
        )
        return self.client.batches.create(
            **{
                "input_file_id": file.id,
                "endpoint": CHAT,
                "completion_window": "24h",
                **arguments,
            }
        )

    def wait(self, job: Any, *states: str, timeout_s: float = 30.0) -> Any:
        from tests.processes import wait_until

        wanted = states or ("completed", "failed", "expired", "cancelled")
        wait_until(lambda: self.client.batches.retrieve(job.id).status in wanted, timeout_s)
        return self.client.batches.retrieve(job.id)

    def lines(self, file_id: str | None) -> list[dict[str, Any]]:
        if file_id is None:
            return []
        text = self.client.files.content(file_id).text
        return [json.loads(line) for line in text.splitlines()]


def make_settings(folder: Path, **config: Any) -> BatchSettings:
    folder.mkdir(exist_ok=True)
    return BatchSettings(
        config=BatchConfig(**{"min_free_disk": 0, **config}),
        folder=folder,
        model_name=MODEL,
        max_line_bytes=1 << 20,
    )


@contextmanager
def open_desk(
    settings: BatchSettings, engines: dict[str, Any], keys: frozenset[bytes] = frozenset()
) -> Iterator[Desk]:
    """Everything is up inside the block."""
    mesh = FakeMesh(engines)
    config = GatewayConfig(mesh="test", model_name=MODEL, port=free_port(), batch=settings)
    app = build_app(config, mesh, keys)
    server = uvicorn.Server(uvicorn.Config(app, port=config.port, log_level="error", lifespan="on"))
    ledger = open_ledger(settings.database_url)
    thread = threading.Thread(
        target=lambda: asyncio.run(_serve(server, settings, ledger, mesh)), daemon=True
    )
    thread.start()
    url = f"http://127.0.0.1:{config.port}"
    from tests.processes import wait_until

    wait_until(lambda: server.started)
    try:
        with openai.OpenAI(base_url=url + "/v1", api_key="none", max_retries=0) as client:
            yield Desk(url, client, ledger, settings, mesh)
    finally:
        server.should_exit = True
        thread.join(20)
        ledger.database.close()


async def _serve(
    server: uvicorn.Server, settings: BatchSettings, ledger: Ledger, mesh: FakeMesh
) -> None:
    runner = Runner(settings, ledger, settings.open_store(), mesh)
    mesh.wake_runner = runner.look_soon
    running = asyncio.create_task(runner.run())
    await server.serve()
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running
