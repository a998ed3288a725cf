"""A process as the controller reaches it, over actors that are fakes."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from ray.actor import ActorHandle
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayTaskError

from actors.descriptions import EngineDescription
from actors.engine_lifecycle import EngineState
from orchestrator.actor_names import ActorName
from orchestrator.control.clients import Gone
from orchestrator.control.lifecycle import Kind
from orchestrator.control.state import Description
from orchestrator.runtime.describing import describe_other
from orchestrator.runtime.process import Process

FINE = EngineDescription(9, 7, "box/1", EngineState.READY, "", None, 0, 1)
KILLED = "its process died: killed from outside, out of memory, or crashed"


class FakeActor:
    """`handle.METHOD.remote(...)` awaits to what `answer` says: None never comes."""

    def __init__(self, answer: Callable[[], Any]) -> None:
        self.calls = 0
        self._answer = answer

    def __getattr__(self, _method: str) -> Any:
        return SimpleNamespace(remote=self._remote)

    async def _remote(self, *_: Any) -> Any:
        self.calls += 1
        answer = self._answer()
        if isinstance(answer, BaseException):
            raise answer
        if answer is None:
            await asyncio.Event().wait()
        return answer


def made(actor: FakeActor, logs: Path) -> Process:
    def describe(_: ActorName, said: Any) -> Description:
        return describe_other(said)

    name = ActorName(Kind.ENGINE, "engine-0", 3)
    handle = cast(ActorHandle, actor)
    return Process(name, handle, describe, logs, probe_timeout_s=0.05, drain_timeout_s=1.0)


def run(work: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(30):
            await work()

    asyncio.run(bounded())


@pytest.mark.parametrize(
    ("answer", "raised", "said"),
    [
        (None, TimeoutError, None),
        (ActorUnavailableError("x", None), TimeoutError, "cannot be reached"),
        (ActorDiedError(), Gone, KILLED),
    ],
)
def test_what_silence_means(
    tmp_path: Path, answer: Any, raised: type[Exception], said: str | None
) -> None:
    async def body() -> None:
        process = made(FakeActor(lambda: answer), tmp_path)
        with pytest.raises(raised, match=said):
            await process.describe()
        assert process.died.done() == (raised is Gone)

    run(body)


def test_an_answer_is_remembered(tmp_path: Path) -> None:
    async def body() -> None:
        process = made(FakeActor(lambda: FINE), tmp_path)
        assert (await process.describe()).incarnation == 9
        assert process.said == FINE

    run(body)


def test_dying_words_are_found_in_the_log(tmp_path: Path) -> None:
    (tmp_path / "worker-a-1-7.err").write_text("INFO: fine\nOSError: data links failed\n")

    async def body() -> None:
        answers = iter([FINE, ActorDiedError()])
        process = made(FakeActor(lambda: next(answers)), tmp_path)
        await process.describe()
        with pytest.raises(Gone, match=r"^data links failed$"):
            await process.describe()

    run(body)


def test_a_start_that_points_to_the_log_is_read_there(tmp_path: Path) -> None:
    (tmp_path / "worker-a-1-7.err").write_text("ValueError: no KV cache\nINFO: x\n")
    pointer = RuntimeError("Engine core initialization failed. See root cause above.")

    async def body() -> None:
        process = made(FakeActor(lambda: FINE), tmp_path)
        await process.describe()
        assert process.why_it_failed(RayTaskError("start", "", pointer)) == "no KV cache"

    run(body)


def test_one_that_hangs_is_asked_one_question(tmp_path: Path) -> None:
    async def body() -> None:
        actor = FakeActor(lambda: None)
        process = made(actor, tmp_path)
        for _ in range(3):
            with pytest.raises(TimeoutError):
                await process.describe()
        assert actor.calls == 1

    run(body)


def test_who_watches_is_told_of_a_death_once(tmp_path: Path) -> None:
    async def body() -> None:
        answers = iter([ActorUnavailableError("x", None), ActorDiedError()])
        process = made(FakeActor(lambda: next(answers)), tmp_path)
        told: list[str] = []
        process.watch((1, 1), told.append)
        process.watch((1, 1), told.append)
        assert await process.died == KILLED
        await asyncio.sleep(0)
        assert told == [KILLED]

    run(body)
