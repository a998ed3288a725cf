"""Requests whose engine is lost in the middle: the client gets the undisturbed answer."""

import asyncio
import json
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from actors.messages import (
    Emitted,
    EngineReply,
    HttpRequest,
    Progress,
    Refusal,
    ResponseStart,
)
from orchestrator.clients.engine_pool import ENGINE_TIMEOUT_S, SILENT_AFTER, EnginePool
from orchestrator.clients.mesh import EngineLostError, EngineStatus
from orchestrator.gateway.app import build_app
from orchestrator.gateway.config import GatewayConfig
from orchestrator.status import ComponentState
from tests.orchestrator.gateway.fakes import (
    JSON_HEADERS,
    SSE_HEADERS,
    FakeEngine,
    FakeMesh,
    call,
    json_answer,
)

PATH = "/v1/completions"
CONFIG = GatewayConfig(mesh="test", model_name="tiny", engine_wait_s=0, migration_limit=3)
LOST = EngineLostError("it died")
OUTPUTS = tuple(Emitted((n, n + 1)) for n in range(0, 16, 2))


@dataclass
class Speaker:
    """An engine whose answer follows from its outputs alone, as vLLM's does, and which dies.

    created: what its events give for the time. cuts: where the bytes of its stream are cut into
    items. lives: outputs of its own that it puts out; None: until the end.
    """

    created: int
    stream: bool = True
    cuts: frozenset[int] = frozenset()
    lives: int | None = None
    death: EngineLostError | Refusal = LOST
    records: bool = True
    state: ComponentState = ComponentState.READY
    asked: list[HttpRequest] = field(default_factory=list)

    async def status(self) -> EngineStatus:
        return EngineStatus(self.state, 4)

    async def handle(self, request: HttpRequest) -> AsyncGenerator[EngineReply, None]:
        if request.path == "/metrics":
            yield ResponseStart(200, ())
            return
        self.asked.append(request)
        told = len(request.emitted)
        assert request.emitted == OUTPUTS[:told]
        end = len(OUTPUTS) if self.lives is None else min(told + self.lives, len(OUTPUTS))
        if self.stream:
            async for reply in self._items(told, end):
                yield reply
        elif self.records:
            yield Progress(OUTPUTS[told:end])
        if self.lives is not None:
            if isinstance(self.death, Refusal):
                yield self.death
                return
            raise self.death
        if not self.stream:
            yield ResponseStart(200, JSON_HEADERS, b'{"whole": true}', ())

    async def _items(self, told: int, end: int) -> AsyncGenerator[EngineReply, None]:
        """A stream cut anywhere; the record is never behind the bytes."""
        pending, news, started = b"", [], False
        for number in range(end):
            if number >= told:
                news.append(OUTPUTS[number])
            for position, byte in enumerate(events_of(number, self.created)):
                pending += bytes([byte])
                if (number * 1000 + position) in self.cuts:
                    yield self._item(pending, news, started)
                    pending, news, started = b"", [], True
        if self.lives is None:
            pending += DONE
        if pending:
            yield self._item(pending, news, started)

    def _item(self, body: bytes, news: list[Emitted], started: bool) -> EngineReply:
        emitted = tuple(news) if self.records else None
        if not started:
            return ResponseStart(200, SSE_HEADERS, body, emitted)
        return Progress(emitted, body) if news else body


DONE = b"data: [DONE]\n\n"


def events_of(number: int, created: int) -> bytes:
    """Events of one output: one, two or three, with a time and with text that looks like one."""
    text = json.dumps('"created":5 and :')
    return b"".join(
        b'data: {"id":"x","created":%d,"n":%d,"part":%d,"text":%s}\n\n'
        % (created, number, part, text.encode())
        for part in range(number % 3 + 1)
    )


WHOLE = b"".join(events_of(n, 1) for n in range(len(OUTPUTS))) + DONE
CUTS = st.frozensets(
    st.integers(0, len(OUTPUTS) - 1).flatmap(
        lambda n: st.integers(0, len(events_of(n, 1)) - 1).map(lambda p: n * 1000 + p)
    ),
    max_size=12,
)


def post(engines, config=CONFIG):
    async def main():
        app = build_app(config, FakeMesh(engines), frozenset())
        answer = await call(app, "POST", PATH)
        return answer, (await call(app, "GET", "/metrics")).body.decode()

    return asyncio.run(main())


@settings(max_examples=30)
@given(
    cuts=st.lists(CUTS, min_size=4, max_size=4),
    lives=st.lists(st.integers(1, len(OUTPUTS)), min_size=3, max_size=3),
    refuses=st.booleans(),
)
def test_a_stream_is_the_same_wherever_it_is_cut_and_its_engines_die(cuts, lives, refuses):
    # Two engines that die and had nothing to add end the request: another test's matter.
    assume(sum(lives[:2]) < len(OUTPUTS))
    death = Refusal("the core died", died=True) if refuses else LOST
    engines = {f"{n}": Speaker(n + 1, cuts=cuts[n], lives=lives[n], death=death) for n in range(3)}
    engines["last"] = Speaker(9, cuts=cuts[3])

    answer, _ = post(engines)

    created = json.loads(answer.body.split(b"\n\n")[0].removeprefix(b"data: "))["created"]
    assert answer.body == WHOLE.replace(b'"id":"x","created":1', b'"id":"x","created":%d' % created)


def test_the_next_engine_is_asked_the_same_and_told_what_was_put_out():
    engines = {"a": Speaker(1, lives=3), "b": Speaker(2)}
    answer, page = post(engines)
    assert answer.body == WHOLE
    (first,), (second,) = engines["a"].asked, engines["b"].asked
    assert (first.record, first.emitted) == (True, ())
    assert (second.body, second.headers) == (first.body, first.headers)
    assert second.emitted == OUTPUTS[:3]
    assert 'continued_total{model_name="tiny"} 1.0' in page


def test_an_answer_that_is_no_stream_is_continued_too():
    engines = {"a": Speaker(1, stream=False, lives=3), "b": Speaker(2, stream=False)}
    answer, _ = post(engines)
    assert answer.json() == {"whole": True}
    assert engines["b"].asked[0].emitted == OUTPUTS[:3]


def test_what_cannot_be_continued_ends_in_an_error_event_once_it_has_begun():
    engines = {"a": Speaker(1, lives=3, records=False), "b": Speaker(2)}
    answer, _ = post(engines)
    assert answer.body.startswith(events_of(0, 1))
    assert json.loads(answer.body.split(b"data: ")[-1])["error"]["code"] == "engine_lost"
    assert engines["b"].asked == []


def test_what_cannot_be_continued_starts_again_while_nothing_was_answered():
    engines = {
        "a": Speaker(1, stream=False, lives=3, records=False),
        "b": Speaker(2, stream=False),
    }
    assert post(engines)[0].json() == {"whole": True}
    assert engines["b"].asked[0].emitted == ()


def test_a_request_is_continued_so_often_and_not_more():
    engines = {name: Speaker(1, lives=1) for name in "abcdef"}
    answer, _ = post(engines, CONFIG.model_copy(update={"migration_limit": 2}))
    assert [len(e.asked) for e in engines.values()] == [1, 1, 1, 0, 0, 0]
    assert answer.body.startswith(events_of(0, 1) + events_of(1, 1) + events_of(2, 1))
    assert b'"code": "engine_lost"' in answer.body


def test_two_engines_lost_without_a_token_in_between_are_enough():
    engines = {"a": Speaker(1, lives=2)} | {name: Speaker(1, lives=0) for name in "bcd"}
    answer, _ = post(engines)
    assert [len(e.asked) for e in engines.values()] == [1, 1, 1, 0]
    assert b'"code": "engine_lost"' in answer.body


def test_a_continued_stream_that_is_refused_ends_with_the_reason():
    error = b'{"error":{"message":"experts are missing","code":"experts_unavailable"}}'
    engines = {
        "a": Speaker(1, lives=2),
        "b": FakeEngine([ResponseStart(503, JSON_HEADERS, error)]),
    }
    answer, _ = post(engines)
    assert answer.body == events_of(0, 1) + events_of(1, 1) + b"data: " + error + b"\n\n"


@pytest.mark.parametrize("begun", [False, True])
def test_a_request_waits_for_an_engine(begun):
    async def main():
        first = Speaker(1, lives=3) if begun else FakeEngine(lost=True)
        mesh = FakeMesh({"a": first})
        app = build_app(CONFIG.model_copy(update={"engine_wait_s": 30}), mesh, frozenset())
        waiting = asyncio.create_task(call(app, "POST", PATH))
        await asyncio.sleep(0.3)
        assert not waiting.done()
        mesh.fakes = {"b": Speaker(2)}
        return await waiting

    answer = asyncio.run(main())
    assert answer.status == 200
    assert answer.body == (
        WHOLE if begun else WHOLE.replace(b'"x","created":1', b'"x","created":2')
    )


def test_a_request_that_waited_long_enough_gets_503_and_no_more_wait_than_may():
    async def main():
        config = CONFIG.model_copy(update={"engine_wait_s": 0.3, "max_queued_requests": 1})
        app = build_app(config, FakeMesh({}), frozenset())
        waiting = asyncio.create_task(call(app, "POST", PATH))
        await asyncio.sleep(0.1)
        return await call(app, "POST", PATH), await waiting

    refused, waited = asyncio.run(main())
    assert (refused.status, waited.status) == (429, 503)
    assert waited.headers["retry-after"] == "1"


@dataclass
class Hanging(FakeEngine):
    """Stops in the middle of its answer and answers no question any more."""

    async def status(self) -> EngineStatus:
        if self.requests:
            await asyncio.Event().wait()
        return await super().status()


def test_streams_of_an_engine_that_hangs_are_continued(monkeypatch):
    monkeypatch.setattr("orchestrator.clients.engine_pool.ENGINE_TIMEOUT_S", 0.05)

    async def main():
        begun = ResponseStart(200, SSE_HEADERS, events_of(0, 1), OUTPUTS[:1])
        engine = Hanging([begun, asyncio.Event()])
        mesh = FakeMesh({"a": engine})
        app = build_app(CONFIG, mesh, frozenset())
        streaming = asyncio.create_task(call(app, "POST", PATH))
        while not engine.requests:
            await asyncio.sleep(0)
        mesh.fakes["b"] = Speaker(2)
        for _ in range(SILENT_AFTER + 1):
            await call(app, "GET", "/health")
        return engine, await streaming

    engine, answer = asyncio.run(main())
    assert answer.body == WHOLE
    assert engine.closed_early == 1


def test_a_slow_engine_that_answers_questions_is_waited_for():
    async def main():
        gate = asyncio.Event()
        engine = FakeEngine([gate, *json_answer(b"{}")])
        pool = EnginePool(FakeMesh({"a": engine}))
        await pool.refresh()
        (pooled,) = pool.engines
        heard = asyncio.create_task(pooled.hear(gate.wait()))
        await asyncio.sleep(0)
        pooled.give_up_waits()  # It has not waited for ENGINE_TIMEOUT_S.
        gate.set()
        return await heard

    assert ENGINE_TIMEOUT_S >= 1
    assert asyncio.run(main())
