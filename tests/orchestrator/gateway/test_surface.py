"""What the gateway lets in: routes, keys, health, metrics and status."""

import asyncio
import os

import pytest

from orchestrator.batch.settings import BatchSettings
from orchestrator.config.batch import BatchConfig
from orchestrator.gateway import app as app_module
from orchestrator.gateway.app import build_app
from orchestrator.gateway.auth import digest
from orchestrator.gateway.config import GatewayConfig
from orchestrator.gateway.metrics import engine_families, page_of
from orchestrator.gateway.page import open_paths
from orchestrator.gateway.routes import INFERENCE_ROUTES
from orchestrator.status import ComponentState
from tests.orchestrator.gateway.fakes import FakeEngine, FakeMesh, call

CONFIG = GatewayConfig(mesh="test", model_name="tiny")
PAGE = """\
# HELP vllm:tokens_total Tokens.
# TYPE vllm:tokens_total counter
vllm:tokens_total{model_name="tiny"} 3.0
# HELP vllm:latency_seconds Latency.
# TYPE vllm:latency_seconds histogram
vllm:latency_seconds_bucket{le="1.0"} 2.0
vllm:latency_seconds_bucket{le="+Inf"} 3.0
vllm:latency_seconds_count 3.0
vllm:latency_seconds_sum 4.5
"""


def get(mesh, path, *, method="GET", keys=(), config=CONFIG, headers=None):
    app = build_app(config, mesh, frozenset(map(digest, keys)))
    return asyncio.run(call(app, method, path, headers=headers))


@pytest.mark.parametrize(
    "path",
    [
        "/v1/load_lora_adapter",
        "/v1/unload_lora_adapter",
        "/collective_rpc",
        "/reset_prefix_cache",
        "/sleep",
        "/scale_elastic_ep",
        "/start_profile",
        "/server_info",
        "/invocations",
        "/openapi.json",
        "/docs",
        "/v1/completions/",
    ],
)
def test_only_listed_routes_reach_an_engine(path):
    for method in ("GET", "POST"):
        engine = FakeEngine()
        answer = get(FakeMesh({"a": engine}), path, method=method)
        assert (answer.status, engine.requests) == (404, [])
        assert answer.json()["error"]["message"] == f"there is no {path} here"


def test_every_listed_route_reaches_an_engine():
    for path, methods in INFERENCE_ROUTES.items():
        for method in methods:
            engine = FakeEngine()
            assert get(FakeMesh({"a": engine}), path, method=method).status == 200
            assert [request.path for request in engine.requests] == [path]


def test_a_wrong_method_is_named():
    answer = get(FakeMesh({}), "/v1/completions")
    assert answer.status == 405
    assert answer.json()["error"]["message"] == "/v1/completions does not take GET"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"authorization": "Bearer wrong"}, 401),
        ({"authorization": "Bearer "}, 401),
        ({"authorization": "Basic key-b"}, 401),
        ({"authorization": "Bearer key-b"}, 200),
        ({"authorization": "bearer key-a"}, 200),
        ({"authorization": "Bearer  key-a "}, 200),
    ],
)
def test_keys_guard_everything_but_health(headers, status):
    for path in ("/v1/models", "/metrics", "/api/v1/status"):
        mesh = FakeMesh({"a": FakeEngine()})
        answer = get(mesh, path, keys=("key-a", "key-b"), headers=headers)
        assert answer.status == status
        if status == 401:
            assert answer.headers["www-authenticate"] == "Bearer"
            error = answer.json()["error"]
            assert error["code"] == "invalid_api_key"
            assert error["message"] == "no valid API key: send `Authorization: Bearer KEY`"
    assert get(FakeMesh({"a": FakeEngine()}), "/health", keys=("key-a",)).status == 200


def test_an_unknown_path_needs_a_key_too():
    assert get(FakeMesh({}), "/nothing", keys=("key",)).status == 401


def test_health_is_200_when_a_completion_would_succeed():
    answer = get(FakeMesh({"a": FakeEngine()}), "/health")
    assert (answer.status, answer.json()["status"]) == (200, "ok")


@pytest.mark.parametrize(
    ("mesh", "reason"),
    [
        (FakeMesh({"a": FakeEngine()}, ready=False, reason="2 experts missing"), "2 experts"),
        (FakeMesh({}), "no engine is ready"),
        (FakeMesh({"a": FakeEngine(state=ComponentState.LOADING)}), "no engine is ready"),
        (FakeMesh({"a": FakeEngine(lost=True)}), "no engine is ready"),
        (FakeMesh({"a": FakeEngine()}, silent=True), "controller has been silent"),
    ],
)
def test_health_says_why_not(mesh, reason):
    answer = get(mesh, "/health")
    assert (answer.status, answer.headers["retry-after"]) == (503, "1")
    assert reason in answer.json()["reason"]


@pytest.mark.parametrize(("grace_s", "status"), [(60.0, 200), (0.0, 503)])
def test_a_silent_controller_does_not_stop_the_serving(grace_s, status):
    async def main():
        mesh = FakeMesh({"a": FakeEngine()})
        config = CONFIG.model_copy(update={"controller_grace_s": grace_s})
        app = build_app(config, mesh, frozenset())
        await call(app, "GET", "/health")
        mesh.silent = True
        health = await call(app, "GET", "/health")
        return health, await call(app, "POST", "/v1/completions")

    health, completion = asyncio.run(main())
    assert (health.status, completion.status) == (status, 200)


def test_status_is_the_controllers_word():
    answer = get(FakeMesh({}), "/api/v1/status")
    assert (answer.status, answer.json()["epoch"]) == (200, 1)
    (gateway,) = answer.json()["components"]
    assert (gateway["id"], gateway["kind"], gateway["state"]) == ("gateway", "gateway", "ready")
    assert gateway["pid"] == os.getpid()
    assert get(FakeMesh({}, silent=True), "/api/v1/status").status == 503


def test_metrics_of_all_engines_are_on_one_page():
    async def main():
        engines = {
            "a": FakeEngine(metrics_page=PAGE),
            "b": FakeEngine(metrics_page=PAGE.replace("3.0", "7.0")),
            "c": FakeEngine(metrics_page="this is no page {"),
        }
        app = build_app(CONFIG, FakeMesh(engines), frozenset())
        await call(app, "POST", "/v1/completions")
        return (await call(app, "GET", "/metrics")).body.decode()

    page = asyncio.run(main())
    assert 'vllm:tokens_total{engine_id="a",model_name="tiny"} 3.0' in page
    assert 'vllm:tokens_total{engine_id="b",model_name="tiny"} 7.0' in page
    assert 'vllm:latency_seconds_bucket{engine_id="b",le="+Inf"} 7.0' in page
    assert page.count("# TYPE vllm:tokens_total counter") == 1
    assert 'expertmesh_gateway_engines_ready{model_name="tiny"} 3.0' in page
    path = 'code="200",model_name="tiny",path="/v1/completions"'
    assert f"expertmesh_gateway_requests_total{{{path}}} 1.0" in page


def test_merged_pages_can_be_merged_again():
    once = page_of(engine_families({"a": PAGE}), "")[0].decode()
    assert 'engine_id="b"' in page_of(engine_families({"b": once}), "")[0].decode()
    assert page_of(engine_families({}), "")[0] == b""


def test_paths_below_a_prefix_are_the_same_paths():
    async def main(path, root_path):
        got = []
        scope = {
            "type": "http", "method": "GET", "path": path, "root_path": root_path,
            "query_string": b"", "headers": [],
        }  # fmt: skip
        engine = FakeEngine()

        async def send(message):
            got.append(message)

        messages = iter([{"type": "http.request", "body": b"", "more_body": False}])

        async def receive():
            return next(messages, None) or await asyncio.Event().wait()

        app = build_app(CONFIG, FakeMesh({"a": engine}), frozenset())
        await app(scope, receive, send)
        return got[0]["status"], [request.path for request in engine.requests]

    assert asyncio.run(main("/a/b/v1/models", "/a/b")) == (200, ["/v1/models"])
    assert asyncio.run(main("/a/health", "/a")) == (200, [])
    assert asyncio.run(main("/a", "/a")) == (307, [])  # to the page


@pytest.mark.parametrize("path", ["/api/v1/status", "/api/v1/expert-load"])
def test_a_controller_that_hangs_is_told_within_a_time(monkeypatch, path):
    monkeypatch.setattr(app_module, "STATUS_TIMEOUT_S", 0.01)
    monkeypatch.setattr(app_module, "LOAD_TIMEOUT_S", 0.01)

    class Hanging(FakeMesh):
        async def status(self):
            await asyncio.Event().wait()

        async def expert_load(self):
            await asyncio.Event().wait()

    answer = get(Hanging({}), path)
    assert (answer.status, answer.headers["retry-after"]) == (503, "1")
    assert "the controller does not answer" in answer.json()["error"]["message"]


class NoLogs:
    """Of a mesh without nodes."""

    def nodes(self):
        return []

    async def read(self, node, offsets):
        raise OSError(node)


def test_every_route_but_health_and_the_page_needs_a_key(tmp_path):
    """Those of batch jobs and logs too, which are there only where the mesh has them."""
    batch = BatchSettings(
        config=BatchConfig(), folder=tmp_path, model_name="tiny", max_line_bytes=1 << 20
    )
    config = CONFIG.model_copy(update={"batch": batch})
    mesh = FakeMesh({"a": FakeEngine()})
    app = build_app(config, mesh, frozenset({digest("key")}), logs=NoLogs())
    routes = {(route.path, method) for route in app.routes for method in route.methods}
    paths = {path for path, _ in routes}
    assert paths > {"/api/v1/logs", "/v1/batches", "/v1/files/{file_id}/content"}
    assert len(paths) > len(INFERENCE_ROUTES)
    for path, method in routes:
        expected = 307 if path == "/" else 200 if path in {"/health", *open_paths()} else 401
        assert asyncio.run(call(app, method, path)).status == expected, (method, path)
