"""Clients that send or read slowly take nothing from the others."""

import asyncio
from dataclasses import dataclass, field

import pytest

from actors.messages import ResponseStart
from orchestrator.api.request_body import LEAST_BYTES_PER_S, reading_time_s
from orchestrator.gateway.app import build_app
from orchestrator.gateway.config import GatewayConfig
from tests.orchestrator.gateway.fakes import (
    JSON_HEADERS,
    SSE_HEADERS,
    FakeEngine,
    FakeMesh,
    call,
    json_answer,
)

PATH = "/v1/completions"
CONFIG = GatewayConfig(mesh="test", model_name="tiny", max_queued_requests=0, max_body_bytes=1000)
IMPATIENT = CONFIG.model_copy(update={"body_timeout_s": 0.05, "send_timeout_s": 0.05})


@dataclass
class Client:
    """A client that sends the given parts of its body, once `begins` is set if there is one, and
    then nothing; `stalls_at`: it stops reading before that message of the answer."""

    parts: list[bytes]
    begins: asyncio.Event | None = None
    stalls_at: int = 1000
    got: list[dict] = field(default_factory=list)

    async def run(self, app):
        scope = {
            "type": "http", "method": "POST", "path": PATH, "query_string": b"", "headers": [],
        }  # fmt: skip
        parts = iter(self.parts)

        async def receive():
            if self.begins is not None:
                await self.begins.wait()
            if (part := next(parts, None)) is None:
                await asyncio.Event().wait()
            return {"type": "http.request", "body": part, "more_body": part != b""}

        async def send(message):
            if len(self.got) == self.stalls_at:
                await asyncio.Event().wait()
            self.got.append(message)

        await app(scope, receive, send)

    @property
    def status(self):
        return self.got[0]["status"] if self.got else None


async def answered(client, app):
    async with asyncio.timeout(10):
        await client.run(app)
    return client.status


def make_app(mesh, config=CONFIG):
    return build_app(config, mesh, frozenset())


def test_a_full_gateway_reads_no_body():
    async def main():
        gate = asyncio.Event()
        engine = FakeEngine([gate, *json_answer(b"{}")], max_running=1)
        app = make_app(FakeMesh({"a": engine}))
        running = asyncio.create_task(call(app, "POST", PATH))
        while not engine.requests:
            await asyncio.sleep(0)
        status = await answered(Client([]), app)
        gate.set()
        return status, (await running).status

    assert asyncio.run(main()) == (429, 200)


def test_clients_that_are_still_sending_keep_nobody_out():
    async def main():
        app = make_app(FakeMesh({"a": FakeEngine(max_running=1)}))
        slow = [asyncio.create_task(Client([b"{"]).run(app)) for _ in range(20)]
        for _ in range(100):
            await asyncio.sleep(0)
        answer = await call(app, "POST", PATH)
        for task in slow:
            task.cancel()
        return answer.status

    assert asyncio.run(main()) == 200


def test_the_queue_may_fill_while_a_body_arrives():
    async def main():
        gate, rest = asyncio.Event(), asyncio.Event()
        engine = FakeEngine([gate, *json_answer(b"{}")], max_running=1)
        app = make_app(FakeMesh({"a": engine}))
        client = Client([b"{}", b""], begins=rest)
        slow = asyncio.create_task(client.run(app))
        running = asyncio.create_task(call(app, "POST", PATH))
        while not engine.requests:
            await asyncio.sleep(0)
        rest.set()
        await slow
        gate.set()
        return client.status, (await running).status

    assert asyncio.run(main()) == (429, 200)


@pytest.mark.parametrize("parts", [[], [b"{"], [b"x" * 500]])
def test_408_for_a_body_that_comes_too_slowly(parts):
    engine = FakeEngine()
    client = Client(parts)
    assert asyncio.run(answered(client, make_app(FakeMesh({"a": engine}), IMPATIENT))) == 408
    assert b"came too slowly" in client.got[1]["body"]
    assert engine.requests == []


def test_more_bytes_give_more_time():
    assert reading_time_s(0, 10.0) == 10.0
    assert reading_time_s(4 * LEAST_BYTES_PER_S, 10.0) == 14.0


@pytest.mark.parametrize(
    "script",
    [
        [ResponseStart(200, SSE_HEADERS, b"data: 1\n\n"), b"data: 2\n\n", asyncio.Event],
        [ResponseStart(200, JSON_HEADERS, b"{}")],
    ],
)
@pytest.mark.parametrize("stalls_at", [0, 1])
def test_a_client_that_does_not_read_is_cut_off(script, stalls_at):
    async def main():
        engine = FakeEngine([step() if step is asyncio.Event else step for step in script])
        app = make_app(FakeMesh({"a": engine}), IMPATIENT)
        await answered(Client([b"{}", b""], stalls_at=stalls_at), app)
        return (await call(app, "GET", "/metrics")).body.decode()

    page = asyncio.run(main())
    assert 'requests_in_flight{model_name="tiny"} 0.0' in page
    assert 'code="499"' in page
