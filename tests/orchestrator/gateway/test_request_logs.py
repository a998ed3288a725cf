"""Lines of gateway and engine name the request that they are about, and its trace."""

import asyncio
import json
import logging

import pytest

from actors.engine import asgi_bridge
from actors.logs import PACKAGES, start_logging
from actors.messages import HttpRequest
from actors.request_logs import request_fields
from orchestrator.clients.mesh import EngineLostError
from orchestrator.gateway.app import build_app
from orchestrator.gateway.config import GatewayConfig
from tests.orchestrator.gateway.fakes import FakeEngine, FakeMesh, call, json_answer

TRACE = "0af7651916cd43dd8448eb211c80319c"
HEADERS = {"x-request-id": "order-66", "traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}


@pytest.fixture(autouse=True)
def _restore_logging():
    root, vllm = logging.getLogger(), logging.getLogger("vllm")
    handlers, level = root.handlers[:], root.level
    of_vllm = vllm.handlers[:], vllm.propagate
    # As in an engine, where vLLM leaves logging alone; an earlier test may have imported it here.
    vllm.handlers[:], vllm.propagate = [], True
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    vllm.handlers[:], vllm.propagate = of_vllm
    for package in PACKAGES:
        logging.getLogger(package).setLevel(logging.NOTSET)


def ask(engines, *requests):
    """Answers of a gateway over these engines to requests that come together."""

    async def main():
        app = build_app(
            GatewayConfig(mesh="test", model_name="tiny"), FakeMesh(engines), frozenset()
        )
        async with app.router.lifespan_context(app):
            calls = [call(app, "POST", "/v1/completions", b"{}", given) for given in requests]
            return await asyncio.gather(*calls)

    return asyncio.run(main())


def lines_of(capsys):
    found = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    return [line for line in found if line["logger"].startswith(("orchestrator.g", "actors.e"))]


def lost():
    return FakeEngine([EngineLostError("its process ended")])


def test_each_line_about_a_request_names_it(capsys):
    start_logging("INFO", "json", "gateway")
    answers = ask({"a": lost()}, HEADERS, HEADERS | {"x-request-id": "order-67"})
    assert [answer.status for answer in answers] == [500, 500]
    lines = lines_of(capsys)
    assert {line["request"] for line in lines} == {"order-66", "order-67"}
    assert {line["trace"] for line in lines} == {TRACE}
    ended = [line for line in lines if line.get("status") == 500]
    assert sorted(line["request"] for line in ended) == ["order-66", "order-67"]
    assert any("its process ended" in line["message"] for line in lines)


def test_the_engine_gets_the_id_that_the_lines_name(capsys):
    start_logging("DEBUG", "json", "gateway")
    engine = FakeEngine(json_answer(b"{}"))
    ask({"a": engine}, {})
    given = dict(engine.requests[0].headers)[b"x-request-id"].decode()
    (line,) = [line for line in lines_of(capsys) if line.get("status") == 200]
    assert (line["request"], "trace" in line) == (given, False)


def test_lines_for_people_stay_one_line(capsys):
    start_logging("INFO", "human", "gateway")
    ask({"a": lost()}, {"x-request-id": "a\x1b[2J b" + "c" * 500})
    ended = [line for line in capsys.readouterr().err.splitlines() if "status 500" in line]
    assert ended[0].endswith("[request=a??2J?b" + "c" * 121 + "]")


def test_an_engines_lines_name_the_request(capsys):
    start_logging("DEBUG", "json", "engine-0")

    async def app(*_):
        async def below():
            logging.getLogger("vllm.serving").warning("an odd prompt")

        await asyncio.create_task(below())
        raise RuntimeError("it failed")

    async def main():
        headers = tuple((k.encode(), v.encode()) for k, v in HEADERS.items())
        request = HttpRequest("POST", "/v1/completions", b"", headers)
        with pytest.raises(RuntimeError):
            async for _ in asgi_bridge.call(app, request):
                pass
        assert request_fields() == {}

    asyncio.run(main())
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert {line["message"] for line in lines} >= {
        "an odd prompt",
        "POST /v1/completions failed: RuntimeError('it failed')",
        "POST /v1/completions: no answer",
    }
    assert all((line["request"], line["trace"]) == ("order-66", TRACE) for line in lines)
