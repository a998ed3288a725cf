"""The status API and the verbs: answers, who may change what, and a controller that is silent."""

import asyncio
import json
from types import SimpleNamespace

import pytest

from orchestrator.api.models import EventView
from orchestrator.api.verbs import BODIES, UPGRADE
from orchestrator.gateway import api_routes, event_stream
from orchestrator.gateway.app import build_app
from orchestrator.gateway.auth import digest
from orchestrator.gateway.config import GatewayConfig
from tests.orchestrator.gateway.fakes import FakeMesh, call

CONFIG = GatewayConfig(mesh="test", model_name="tiny")
OPEN = CONFIG.model_copy(update={"host": "0.0.0.0"})
JSON = {"content-type": "application/json", "host": "127.0.0.1:8000"}
VIEWS = ("cluster", "pools", "nodes", "shards", "placement", "plan", "transactions", "events")


def line(number, step="ready", transaction=0, reason="because"):
    return EventView(
        number=number, wall_s=1.0, subject="a-0", step=step, transaction=transaction, reason=reason
    )


def app_of(mesh, keys=(), admins=(), config=CONFIG):
    return build_app(config, mesh, frozenset(map(digest, keys)), frozenset(map(digest, admins)))


def get(app, path, **headers):
    return asyncio.run(call(app, "GET", path, headers=headers))


def post(app, verb, body, **headers):
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    return asyncio.run(call(app, "POST", f"/api/v1/{verb}", text, {**JSON, **headers}))


def test_what_the_controller_says_is_shown_in_parts():
    app = app_of(FakeMesh({}, lines=[line(1)]))
    answers = {name: get(app, f"/api/v1/{name}").json() for name in VIEWS}
    assert {answer.pop("stale_s") for answer in answers.values()} == {0.0}
    assert answers["cluster"]["epoch"] == {"term": 2, "number": 5}
    assert answers["shards"]["shards"] == [answers["cluster"]["places"][0]]
    assert answers["pools"]["pools"] == answers["cluster"]["pools"]
    assert answers["nodes"]["nodes"][0]["components"] == ["a-0", "engine-0"]
    assert answers["placement"]["shards"] == {"a-0": {"0": [0, 1]}}
    assert answers["plan"]["problem"] == ""
    assert get(app, "/api/v1/load").json()["counts"] == [[3, 1]]


@pytest.mark.parametrize("name", [*VIEWS, "status"])
def test_a_silent_controllers_last_word_is_shown_with_its_age(name):
    async def main():
        mesh = FakeMesh({}, lines=[line(1)])
        app = app_of(mesh)
        await call(app, "GET", "/health")
        said = [await call(app, "GET", f"/api/v1/{name}")]
        if name == "events":
            await call(app, "GET", "/api/v1/transactions")
        mesh.silent = True
        await asyncio.sleep(0.05)
        return [*said, await call(app, "GET", f"/api/v1/{name}")]

    fresh, stale = (answer.json() for answer in asyncio.run(main()))
    assert fresh.pop("stale_s") == 0
    assert 0.04 < stale.pop("stale_s") < 5
    assert fresh == stale
    silent = get(app_of(FakeMesh({}, silent=True)), f"/api/v1/{name}")
    assert (silent.status, silent.headers["retry-after"]) == (503, "1")


def test_the_gateway_asks_even_where_nobody_else_does():
    async def main():
        mesh = FakeMesh({}, lines=[line(1)])
        app = app_of(mesh)
        async with app.router.lifespan_context(app):
            await asyncio.sleep(0.1)
            mesh.silent = True
            return [await call(app, "GET", f"/api/v1/{name}") for name in VIEWS]

    assert [answer.status for answer in asyncio.run(main())] == [200] * len(VIEWS)


def test_nothing_runs_on_after_an_application_that_was_cancelled():
    async def run(mesh):
        async with app_of(mesh).router.lifespan_context(None):
            await asyncio.Event().wait()

    async def main():
        for _ in range(3):
            mesh = FakeMesh({})
            running = asyncio.create_task(run(mesh))
            while not mesh.times_asked:
                await asyncio.sleep(0.01)
            running.cancel()
            await asyncio.wait({running})
        await asyncio.sleep(0.01)  # a question that was under way is answered
        return asyncio.all_tasks() - {asyncio.current_task()}

    assert asyncio.run(main()) == set()


def test_events_are_read_from_a_number_on_and_from_the_end():
    app = app_of(FakeMesh({}, lines=[line(n) for n in range(1, 9)]))

    def numbers(query):
        return [e["number"] for e in get(app, f"/api/v1/events?{query}").json()["events"]]

    assert numbers("after=6") == [7, 8]
    assert numbers("after=-2") == [7, 8]
    assert numbers("after=0&limit=3") == [1, 2, 3]
    for query, text in (("after=x", "after is 'x'"), ("limit=0", "limit is from 1 to 1000")):
        answer = get(app, f"/api/v1/events?{query}")
        assert answer.status == 400
        assert text in answer.json()["error"]["message"]


def test_events_are_followed_as_they_come_and_the_stream_ends_with_a_silent_controller(monkeypatch):
    monkeypatch.setattr(event_stream, "SILENCE_S", 0.2)
    monkeypatch.setattr(event_stream, "POLL_S", 0.01)

    async def main():
        mesh = FakeMesh({}, lines=[line(1), line(2)])
        asked = asyncio.create_task(call(app_of(mesh), "GET", "/api/v1/events?follow=true&after=1"))
        await asyncio.sleep(0.1)
        mesh.lines.append(line(3, reason="two\nlines"))
        await asyncio.sleep(0.1)
        mesh.silent = True
        return await asyncio.wait_for(asked, 5)

    answer = asyncio.run(main())
    assert answer.headers["content-type"].startswith("text/event-stream")
    _, *events, _ = answer.body.decode().split("\n\n")
    assert [event.splitlines()[0] for event in events] == ["id: 2", "id: 3"]
    data = json.loads(events[1].splitlines()[2].removeprefix("data: "))
    assert (data["number"], data["reason"]) == (3, "two\nlines")


def test_followers_are_bounded(monkeypatch):
    monkeypatch.setattr(api_routes, "MOST_FOLLOWERS", 0)
    assert get(app_of(FakeMesh({})), "/api/v1/events?follow=1").status == 429


def test_transactions_are_gathered_from_the_history():
    lines = [line(1, "planned", 4, "hot experts"), line(2, "done", 4), line(3, "planned", 5)]
    body = get(app_of(FakeMesh({}, lines=lines)), "/api/v1/transactions").json()
    assert [(t["id"], t["phase"], t["reason"]) for t in body["transactions"]] == [
        (5, "planned", "because"),
        (4, "done", "hot experts"),
    ]


# -- verbs

BODY_OF = {
    "scale": {"pool": "a", "size": 3},
    "rebalance": {},
    "stop-rolling-restart": {},
    "upgrade": {},
    "pin": {"expert": "0/1", "pools": ["a", "b"]},
    "ban": {"expert": "0/1", "pools": ["a"]},
    "unpin": {"expert": "0/1"},
}
ASKED = {
    "scale": ("a", 3),
    "rebalance": ("", 0),
    "stop-rolling-restart": ("", 0),
    "upgrade": ("", 0),
    "pin": ("0/1 a,b", 0),
    "ban": ("0/1 a", 0),
    "unpin": ("0/1", 0),
}


@pytest.mark.parametrize("verb", BODIES)
def test_a_verb_reaches_the_controller(verb):
    mesh = FakeMesh({})
    body = BODY_OF.get(verb, {"target": "a-0"})
    target, number = ASKED.get(verb, ("a-0", 0))
    answer = post(app_of(mesh), verb, {**body, "dry_run": True})
    assert (answer.status, answer.json()) == (
        200,
        {"verb": verb, "text": f"{verb} is done", "dry_run": True},
    )
    post(app_of(mesh), verb, body)
    assert mesh.asked == [(verb, target, number, True), (verb, target, number, False)]


def test_the_controls_core_knows_every_verb_of_the_api():
    from orchestrator.control.verbs import VERBS

    assert BODIES.keys() == VERBS.keys() | {UPGRADE}


def test_a_refusal_is_409_with_the_reason():
    answer = post(app_of(FakeMesh({}, refuses="a-0 is the last")), "drain", {"target": "a-0"})
    assert (answer.status, answer.headers["x-should-retry"]) == (409, "false")
    assert answer.json()["error"]["message"] == "a-0 is the last"
    assert answer.json()["error"]["code"] == "refused"


def test_a_silent_controller_changes_nothing():
    mesh = FakeMesh({}, silent=True)
    answer = post(app_of(mesh), "drain", {"target": "a-0"})
    assert answer.status == 503
    assert "changes need the controller" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("verb", "body", "message"),
    [
        ("drain", {}, "target: Field required"),
        ("drain", {"target": "a", "force": True}, "force: Extra inputs are not permitted"),
        ("scale", {"pool": "a", "size": "many"}, "size: Input should be a valid integer"),
        ("pin", {"expert": "0/1", "pools": []}, "pools: List should have at least 1 item"),
        ("drain", b"{", "the body is no JSON object"),
    ],
)
def test_bad_bodies_are_told_by_their_field(verb, body, message):
    mesh = FakeMesh({})
    answer = post(app_of(mesh), verb, body)
    assert (answer.status, mesh.asked) == (400, [])
    assert message in answer.json()["error"]["message"]


# -- who may

ADMIN, CLIENT = {"authorization": "Bearer root"}, {"authorization": "Bearer key"}


@pytest.mark.parametrize("config", [CONFIG, OPEN])
@pytest.mark.parametrize(
    ("keys", "headers", "status", "code"),
    [
        ((), {}, 401, "invalid_admin_key"),
        ((), CLIENT, 403, "invalid_admin_key"),
        ((), {"authorization": "Basic root"}, 403, "invalid_admin_key"),
        ((), ADMIN, 200, None),
        (("key",), {}, 401, "invalid_api_key"),
        (("key",), CLIENT, 403, "invalid_admin_key"),
        (("key",), ADMIN, 200, None),
    ],
)
def test_changes_need_an_admin_key_and_a_clients_is_not_enough(config, keys, headers, status, code):
    mesh = FakeMesh({})
    answer = post(app_of(mesh, keys, ("root", "other"), config), "rebalance", {}, **headers)
    assert (answer.status, len(mesh.asked)) == (status, status == 200)
    if code:
        assert answer.json()["error"]["code"] == code


def test_an_admin_key_is_good_for_questions_too():
    app = app_of(FakeMesh({}), ("key",), ("root",))
    assert get(app, "/api/v1/cluster", **ADMIN).status == 200
    assert get(app, "/api/v1/cluster").status == 401


def test_without_admin_keys_only_loopback_takes_changes():
    mesh = FakeMesh({})
    refused = post(app_of(mesh, config=OPEN), "rebalance", {})
    assert (refused.status, mesh.asked) == (403, [])
    assert refused.json()["error"]["message"] == (
        "changes are refused: the mesh listens on 0.0.0.0 and has no admin keys; set "
        "EXPERTMESH_ADMIN_KEYS where it is started"
    )
    assert post(app_of(mesh), "rebalance", {}, host="localhost:8000").status == 200
    assert post(app_of(mesh), "rebalance", {}, host="[::1]:8000").status == 200


def test_a_page_in_a_browser_changes_nothing():
    """Neither by a request that browsers send unasked, nor by a name that leads to this machine."""
    mesh = FakeMesh({})
    plain = post(app_of(mesh), "rebalance", {}, **{"content-type": "text/plain"})
    renamed = post(app_of(mesh), "rebalance", {}, host="evil.example:8000")
    assert (plain.status, renamed.status, mesh.asked) == (415, 403, [])


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),  # another port of this machine
        ({"origin": "http://127.0.0.1:9999"}, 403),
        ({"origin": "null"}, 403),
        ({"sec-fetch-site": "same-origin", "origin": "http://127.0.0.1:8000"}, 200),
    ],
)
@pytest.mark.parametrize("admins", [(), ("root",)])
def test_only_the_meshs_own_page_changes_it(headers, status, admins):
    mesh = FakeMesh({})
    answer = post(app_of(mesh, (), admins), "rebalance", {}, **ADMIN, **headers)
    assert (answer.status, len(mesh.asked)) == (status, status == 200)


# -- vLLM's fault tolerance


def test_engines_health_as_vllm_tells_it():
    answer = get(app_of(FakeMesh({})), "/v1/fault_tolerance/status")
    assert answer.headers["x-expertmesh-stale-s"] == "0.000"
    assert answer.json() == {
        "schema_version": 1,
        "total_engines": 3,
        "engines": [
            {"id": 0, "status": "healthy"},
            {"id": 1, "status": "unhealthy", "fault_info": "3 probes in a row"},
            {"id": 2, "status": "dead"},
        ],
    }


@pytest.mark.vllm
def test_the_form_is_that_of_the_installed_vllm():
    from vllm.v1.engine import EngineStatusType
    from vllm.v1.engine.core_client import AsyncMPClient

    engines = {0: {"id": 0, "status": "healthy"}}
    client = SimpleNamespace(engine_ranks_managed=[0], _engine_status=engines)
    theirs = asyncio.run(AsyncMPClient.get_status(client))
    ours = get(app_of(FakeMesh({})), "/v1/fault_tolerance/status").json()
    assert ours.keys() == theirs.keys()
    assert ours["schema_version"] == theirs["schema_version"]
    statuses = {kind.name.lower() for kind in EngineStatusType}
    assert {engine["status"] for engine in ours["engines"]} == statuses
