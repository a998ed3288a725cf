"""Kinds of traffic at the gateway: who names them, and what is told of them."""

import asyncio

import numpy as np
import pytest

from actors.messages import ResponseStart
from actors.traffic import MAX_KINDS
from orchestrator.clients.mesh import EngineLostError
from orchestrator.expert_load import ExpertLoad, TrafficTokens
from orchestrator.gateway.app import build_app
from orchestrator.gateway.auth import digest
from orchestrator.gateway.config import GatewayConfig
from orchestrator.traffic_load import KindLoad
from tests.orchestrator.gateway.fakes import JSON_HEADERS, FakeEngine, FakeMesh, call

PATH = "/v1/completions"
HEADER = "X-ExpertMesh-Traffic"
CONFIG = GatewayConfig(mesh="test", model_name="tiny")
NAMED = GatewayConfig(
    mesh="test", model_name="tiny", key_names={digest("key-of-code").hex(): "code"}
)


def kinds_told(app, engine, lines):
    """What the engine is told about requests with these headers."""

    async def main():
        for headers in lines:
            await call(app, "POST", PATH, b"{}", headers)

    asyncio.run(main())
    told = [dict(request.headers).get(b"x-expertmesh-traffic") for request in engine.requests]
    return [kind and kind.decode() for kind in told]


def app_of(engine, config=CONFIG, keys=()):
    return build_app(config, FakeMesh({"a": engine}), frozenset(map(digest, keys)))


def test_a_header_names_the_kind():
    app = app_of(engine := FakeEngine())
    lines = [{HEADER: "code"}, {}, {HEADER: "CHAT"}, {HEADER: "no name"}]
    assert kinds_told(app, engine, lines) == ["code", None, "chat", "other"]


def test_kinds_are_bounded():
    app = app_of(engine := FakeEngine())
    told = kinds_told(app, engine, [{HEADER: f"k{n}"} for n in range(MAX_KINDS + 2)])
    assert told[-3:] == [f"k{MAX_KINDS - 1}", "other", "other"]


def test_the_keys_name_is_the_kind_unless_the_header_says_otherwise():
    app = app_of(engine := FakeEngine(), NAMED, ["key-of-code", "plain"])
    code, plain = {"Authorization": "Bearer key-of-code"}, {"Authorization": "Bearer plain"}
    assert kinds_told(app, engine, [code, plain, {**code, HEADER: "chat"}]) == [
        "code",
        None,
        "chat",
    ]


def test_a_name_helps_nobody_in():
    app = app_of(engine := FakeEngine(), NAMED, ["plain"])
    assert kinds_told(app, engine, [{"Authorization": "Bearer key-of-code"}]) == []


def test_another_engine_is_told_the_same():
    first, second = FakeEngine([EngineLostError("died")]), FakeEngine()
    app = build_app(CONFIG, FakeMesh({"a": first, "b": second}), frozenset())
    assert kinds_told(app, second, [{HEADER: "code"}]) == ["code"]
    assert first.requests[0].headers == second.requests[0].headers


def test_requests_are_counted_by_kind():
    app = app_of(engine := FakeEngine([ResponseStart(200, JSON_HEADERS, b"{}")]))
    kinds_told(app, engine, [{HEADER: "code"}, {HEADER: "code"}, {}])
    page = asyncio.run(call(app, "GET", "/metrics")).body.decode()
    for kind, count in (("code", 2), ("default", 1)):
        line = "expertmesh_gateway_traffic_requests_total"
        assert f'{line}{{model_name="tiny",traffic="{kind}"}} {count}.0' in page


class ToldMesh(FakeMesh):
    async def expert_load(self):
        counts = np.array([[3, 1]])
        traffic = (TrafficTokens("code", "text", 12), TrafficTokens("chat", "text", 3))
        return ExpertLoad("tiny", (0,), counts, {"a-0": counts}, traffic)


def told(path):
    load = KindLoad("tiny", "code", None, (0,), 12, np.array([[3.0, 1.0]]))
    mesh = ToldMesh({"a": FakeEngine()}, kinds={"code": load})
    return asyncio.run(call(build_app(CONFIG, mesh, frozenset()), "GET", path))


def test_load_of_a_kind():
    answer = told("/api/v1/load?kind=code")
    assert answer.status == 200
    body = answer.json()
    assert (body["kind"], body["content"], body["tokens"]) == ("code", None, 12)
    assert (body["layers"], body["shares"]) == ([0], [[0.75, 0.25]])


def test_load_says_which_kinds_there_are():
    assert told("/api/v1/load").json()["traffic"] == [
        {"kind": "code", "content": "text", "tokens": 12},
        {"kind": "chat", "content": "text", "tokens": 3},
    ]


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("kind=coda", "no traffic of kind coda; did you mean code? (kinds: chat, code)"),
        ("kind=zzz", "no traffic of kind zzz (kinds: chat, code)"),
        ("kind=code&content=image", "kind code has had no image"),
    ],
)
def test_load_that_there_is_none_of(query, says):
    answer = told(f"/api/v1/load?{query}")
    assert answer.status == 404
    assert says in answer.json()["error"]["message"]
