"""The monitor, over actors that are fakes."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayTaskError

from orchestrator.components import Component
from orchestrator.errors import UserError
from orchestrator.status import ComponentKind, ComponentState
from orchestrator.watch import Watch
from tests.orchestrator.building import component

INTERVAL_S = 0.2
FINE = {"pid": 7, "node": "box", "state": "ready"}


class FakeActor:
    """`handle.status.remote()` awaits to what `answer` says."""

    def __init__(self, answer: Callable[[], Any]) -> None:
        self.calls = 0
        self._answer = answer
        self.status = SimpleNamespace(remote=self._remote)

    async def _remote(self) -> Any:
        self.calls += 1
        answer = self._answer()
        if isinstance(answer, BaseException):
            raise answer
        if answer is None:
            await asyncio.Event().wait()
        return answer


def watched(answer: Callable[[], Any]) -> Component:
    made = component("a-0", ComponentKind.SHARD, handle=FakeActor(answer))
    made.said = {"pid": 7}
    return made


def look_once(part: Component, logs: Path) -> None:
    asyncio.run(Watch(INTERVAL_S, 2, logs).look_at(part))


@pytest.mark.parametrize(
    ("answer", "state", "detail"),
    [
        (FINE, ComponentState.READY, ""),
        (None, ComponentState.READY, "has not answered for 0.2 s"),
        (ActorUnavailableError("x", None), ComponentState.READY, "cannot be reached"),
        (RayTaskError("status", "", KeyError("k")), ComponentState.READY, "KeyError: 'k'"),
        (
            ActorDiedError(),
            ComponentState.DEAD,
            "its process died: killed from outside, out of memory, or crashed",
        ),
    ],
)
def test_what_an_answer_means(
    tmp_path: Path, answer: Any, state: ComponentState, detail: str
) -> None:
    part = watched(lambda: answer)
    look_once(part, tmp_path)
    assert (part.state, part.detail) == (state, detail)


def test_dying_words_are_found_in_the_log(tmp_path: Path) -> None:
    (tmp_path / "worker-a-1-7.err").write_text("INFO: fine\nOSError: data links failed\n")
    part = watched(ActorDiedError)
    look_once(part, tmp_path)
    assert part.detail == "data links failed"


def test_a_start_that_points_to_the_log_is_read_there(tmp_path: Path) -> None:
    (tmp_path / "worker-a-1-7.err").write_text("ValueError: no KV cache\nINFO: x\n")
    pointer = RuntimeError("Engine core initialization failed. See root cause above.")

    async def fail() -> None:
        raise RayTaskError("start", "", pointer)

    part = watched(lambda: FINE)
    with pytest.raises(UserError, match=r"^shard a-0 did not start: no KV cache$"):
        asyncio.run(Watch(1, 1, tmp_path).must(part, fail(), 1))
    assert part.state is ComponentState.DEAD


def test_a_start_without_an_answer(tmp_path: Path) -> None:
    part = watched(lambda: FINE)
    with pytest.raises(UserError, match=r"did not start: no answer within 0.05 s"):
        asyncio.run(Watch(1, 1, tmp_path).must(part, asyncio.sleep(5), 0.05))


def test_one_that_hangs_does_not_hide_another(tmp_path: Path) -> None:
    hanging, dying, odd = watched(lambda: None), watched(ActorDiedError), watched(lambda: {})

    async def body() -> None:
        watch = Watch(0.01, 5, tmp_path)
        running = asyncio.create_task(watch.run(lambda: [hanging, odd, dying]))
        async with asyncio.timeout(5):
            while dying.state is not ComponentState.DEAD or odd.handle.calls < 3:
                await asyncio.sleep(0.01)
        running.cancel()

    asyncio.run(body())
    assert hanging.handle.calls == 1, "one question is open, however often it was looked at"
    assert dying.handle.calls == 1, "the dead are not asked again"


def test_a_silent_component_is_suspected_and_recovers(tmp_path: Path) -> None:
    async def body() -> None:
        answers = asyncio.Event()

        async def status() -> Any:
            nonlocal calls
            calls += 1
            await answers.wait()
            return FINE

        calls = 0
        part = component("a-0", ComponentKind.SHARD, handle=SimpleNamespace())
        part.handle.status = SimpleNamespace(remote=status)
        watch = Watch(0.01, 3, tmp_path)
        for state in (ComponentState.READY, ComponentState.READY, ComponentState.SUSPECT):
            await watch.look_at(part)
            assert part.state is state
        assert part.detail == "has not answered for 0.03 s"
        assert calls == 1
        answers.set()
        await watch.look_at(part)
        assert (part.state, part.detail, part.silent_probes) == (ComponentState.READY, "", 0)

    asyncio.run(body())


@pytest.mark.parametrize("state", [ComponentState.STARTING, ComponentState.LOADING])
def test_a_component_that_starts_is_not_suspected(tmp_path: Path, state: ComponentState) -> None:
    part = watched(lambda: ActorUnavailableError("x", None))
    part.state = state
    for _ in range(5):
        look_once(part, tmp_path)
    assert part.state is state


def test_an_answer_that_comes_after_its_death_changes_nothing(tmp_path: Path) -> None:
    async def body() -> None:
        watch, part = Watch(0.2, 3, tmp_path), watched(lambda: FINE)
        looking = asyncio.create_task(watch.look_at(part))
        await asyncio.sleep(0)
        part.lose("killed")
        await looking
        assert part.state is ComponentState.DEAD

    asyncio.run(body())
