"""Requests on their way to an engine and back: choice, failures, disconnects."""

import asyncio
import json
from contextlib import aclosing

import pytest

from actors.engine import asgi_bridge
from actors.messages import HttpRequest, Refusal, ResponseStart
from orchestrator.clients.mesh import EngineFailedError, EngineLostError
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

CONFIG = GatewayConfig(
    mesh="test",
    model_name="tiny",
    max_queued_requests=1,
    max_body_bytes=1000,
    engine_wait_s=0,
)
PATH = "/v1/completions"
LOST = EngineLostError("it died")


def make_app(mesh, config=CONFIG):
    return build_app(config, mesh, frozenset())


def post(mesh, **arguments):
    return asyncio.run(call(make_app(mesh), "POST", PATH, **arguments))


def test_answer_and_request_pass_through():
    engine = FakeEngine([ResponseStart(200, JSON_HEADERS, b'{"a":'), b"1}"])
    headers = {"Content-Type": "application/json", "Authorization": "Bearer key", "Cookie": "c"}

    answer = post(FakeMesh({"a": engine}), body=b"question", headers=headers)

    assert (answer.status, answer.json()) == (200, {"a": 1})
    assert answer.headers == {"content-type": "application/json", "content-length": "7"}
    (request,) = engine.requests
    assert (request.method, request.path, request.body) == ("POST", PATH, b"question")
    content_type, request_id = request.headers
    assert content_type == (b"content-type", b"application/json")
    assert (request_id[0], len(request_id[1])) == (b"x-request-id", 32)


def test_errors_of_the_engine_are_passed_on_unchanged():
    engine = FakeEngine([ResponseStart(400, JSON_HEADERS, b'{"error":{"message":"bad"}}')])
    answer = post(FakeMesh({"a": engine, "b": FakeEngine()}))
    assert (answer.status, answer.json()) == (400, {"error": {"message": "bad"}})


def test_stream_arrives_chunk_by_chunk():
    async def main():
        gate = asyncio.Event()
        engine = FakeEngine([ResponseStart(200, SSE_HEADERS, b"data: 1\n\n"), gate, b"data: 2\n\n"])
        app = make_app(FakeMesh({"a": engine}))
        async with aclosing(asgi_bridge.call(app, HttpRequest("POST", PATH))) as stream:
            first = await anext(stream)
            assert (first.status, first.body) == (200, b"data: 1\n\n")
            gate.set()
            return b"".join([chunk async for chunk in stream])

    assert asyncio.run(main()) == b"data: 2\n\n"


def test_requests_go_to_the_engine_with_the_fewest_in_flight():
    async def main():
        gate = asyncio.Event()
        engines = {name: FakeEngine([gate, *json_answer(b"{}")]) for name in "abc"}
        app = make_app(FakeMesh(engines))
        calls = [asyncio.create_task(call(app, "POST", PATH)) for _ in range(6)]
        while sum(len(engine.requests) for engine in engines.values()) < 6:
            await asyncio.sleep(0)
        spread = [len(engine.requests) for engine in engines.values()]
        gate.set()
        return spread, [(await c).status for c in calls]

    assert asyncio.run(main()) == ([2, 2, 2], [200] * 6)


@pytest.mark.parametrize(
    "script",
    [
        pytest.param([LOST], id="before any answer"),
        pytest.param([ResponseStart(200, JSON_HEADERS, b"{"), LOST], id="in a JSON answer"),
        pytest.param([Refusal("draining")], id="by refusal"),
        pytest.param([], id="without a word"),
    ],
)
def test_a_request_moves_on_while_nothing_was_answered(script):
    async def main():
        broken, healthy = FakeEngine(script), FakeEngine(json_answer(b'{"from":"b"}'))
        app = make_app(FakeMesh({"a": broken, "b": healthy}))
        answers = [await call(app, "POST", PATH) for _ in range(3)]
        page = (await call(app, "GET", "/metrics")).body.decode()
        return answers, broken, healthy, page

    answers, broken, healthy, page = asyncio.run(main())
    assert [a.json() for a in answers] == [{"from": "b"}] * 3
    # Dropped after the first failure: the next requests do not try it again.
    assert (len(broken.requests), len(healthy.requests)) == (1, 3)
    assert 'expertmesh_gateway_retries_total{model_name="tiny"} 1.0' in page


def test_a_lost_engine_comes_back_when_it_answers_again():
    async def main():
        engine = FakeEngine([LOST])
        app = make_app(FakeMesh({"a": engine}))
        failed = await call(app, "POST", PATH)
        engine.script = json_answer(b"{}")
        return failed, await call(app, "POST", PATH)

    failed, served = asyncio.run(main())
    assert (failed.status, served.status) == (503, 200)
    assert "engine a: it died" in failed.json()["error"]["message"]


def test_a_stream_that_began_ends_in_an_error_event():
    async def main():
        engine = FakeEngine([ResponseStart(200, SSE_HEADERS, b"data: 1\n\n"), LOST])
        other = FakeEngine()
        app = make_app(FakeMesh({"a": engine, "b": other}))
        answer = await call(app, "POST", PATH)
        page = (await call(app, "GET", "/metrics")).body.decode()
        return answer, other, page

    answer, other, page = asyncio.run(main())
    events = answer.body.decode().split("\n\n")
    assert events[0] == "data: 1"
    assert '"code": "engine_lost"' in events[1]
    assert "[DONE]" not in answer.body.decode()
    assert other.requests == []
    assert 'expertmesh_gateway_streams_cut_total{model_name="tiny"} 1.0' in page


def test_a_request_that_breaks_engines_is_not_tried_on_the_next():
    engines = {"a": FakeEngine([EngineFailedError("broken: KeyError")]), "b": FakeEngine()}
    answer = post(FakeMesh(engines))
    assert answer.status == 500
    assert answer.json()["error"]["message"] == "broken: KeyError"
    assert engines["b"].requests == []


@pytest.mark.parametrize(
    "script", [[LOST], [ResponseStart(200, JSON_HEADERS, b"{"), LOST], [Refusal("died", died=True)]]
)
def test_a_request_that_ended_two_engines_is_not_tried_on_a_third(script):
    engines = {name: FakeEngine(script) for name in "abc"}
    answer = post(FakeMesh(engines))
    assert answer.status == 500
    assert answer.json()["error"]["code"] == "engine_lost"
    assert answer.headers["x-should-retry"] == "false"
    assert [len(engine.requests) for engine in engines.values()] == [1, 1, 0]


def test_engines_that_refuse_do_not_count_as_lost():
    engines = {name: FakeEngine([Refusal("draining")]) for name in "abc"} | {"d": FakeEngine()}
    assert post(FakeMesh(engines)).status == 200


def test_missing_experts_are_told_and_the_engine_stays():
    async def main():
        body = json.dumps({"error": {"message": "expert 7 of layer 2 is on no shard"}}).encode()
        headers = (*JSON_HEADERS, (b"x-expertmesh-error", b"experts_unavailable"))
        engines = {"a": FakeEngine([ResponseStart(503, headers, body)]), "b": FakeEngine()}
        app = make_app(FakeMesh(engines))
        answer = await call(app, "POST", PATH)
        engines["a"].script = json_answer(b'{"from":"a"}')
        return answer, engines["b"].requests, await call(app, "POST", PATH)

    answer, elsewhere, later = asyncio.run(main())
    assert (answer.status, answer.headers["retry-after"]) == (503, "1")
    error = answer.json()["error"]
    assert (error["type"], error["code"]) == ("service_unavailable_error", "experts_unavailable")
    assert "expert 7 of layer 2 is on no shard" in error["message"]
    assert elsewhere == []
    assert later.json() == {"from": "a"}


@pytest.mark.parametrize("status", [429, 503])
def test_an_engines_429_or_503_says_when_to_come_back(status):
    answer = post(FakeMesh({"a": FakeEngine([ResponseStart(status, JSON_HEADERS, b"{}")])}))
    assert (answer.status, answer.headers["retry-after"]) == (status, "1")


@pytest.mark.parametrize("engines", [{}, {"a": FakeEngine(lost=True)}])
def test_503_while_no_engine_is_ready(engines):
    answer = post(FakeMesh(engines))
    assert answer.status == 503
    assert answer.headers["retry-after"] == "1"
    assert answer.json()["error"]["type"] == "service_unavailable_error"


def test_429_when_the_queue_is_full_and_not_after():
    async def main():
        gate = asyncio.Event()
        engine = FakeEngine([gate, *json_answer(b"{}")], max_running=2)
        app = make_app(FakeMesh({"a": engine}))
        running = [asyncio.create_task(call(app, "POST", PATH)) for _ in range(3)]
        while len(engine.requests) < 3:
            await asyncio.sleep(0)
        refused = await call(app, "POST", PATH)
        models = asyncio.create_task(call(app, "GET", "/v1/models"))
        gate.set()
        await asyncio.gather(*running, models)
        return refused, models.result(), await call(app, "POST", PATH)

    refused, models, later = asyncio.run(main())
    assert (refused.status, refused.headers["retry-after"]) == (429, "1")
    assert refused.json()["error"]["type"] == "rate_limit_error"
    assert (models.status, later.status) == (200, 200)


@pytest.mark.parametrize("headers", [{}, {"content-length": "1001"}])
def test_413_for_a_body_that_is_too_large(headers):
    engine = FakeEngine()
    answer = post(FakeMesh({"a": engine}), body=b"x" * 1001, headers=headers)
    assert answer.status == 413
    assert "larger than 1000 bytes" in answer.json()["error"]["message"]
    assert engine.requests == []


def test_a_client_that_leaves_stops_its_request():
    async def main(script):
        engine = FakeEngine(script)
        app = make_app(FakeMesh({"a": engine}))
        reader = asyncio.create_task(call(app, "POST", PATH))
        while not engine.requests:
            await asyncio.sleep(0)
        for _ in range(10):
            await asyncio.sleep(0)
        reader.cancel()
        await asyncio.gather(reader, return_exceptions=True)
        page = (await call(app, "GET", "/metrics")).body.decode()
        return engine, page

    first_event = ResponseStart(200, SSE_HEADERS, b"data: 1\n\n")
    for script in ([asyncio.Event()], [first_event, asyncio.Event()]):
        engine, page = asyncio.run(main(script))
        assert engine.closed_early == 1
        assert 'requests_in_flight{model_name="tiny"} 0.0' in page
        assert f'requests_total{{code="499",model_name="tiny",path="{PATH}"}} 1.0' in page
