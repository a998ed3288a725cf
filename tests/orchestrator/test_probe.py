"""At most one question is open at a process that hangs."""

import asyncio

import pytest

from orchestrator.probe import Probe


class Process:
    def __init__(self) -> None:
        self.asked = 0
        self.answers: asyncio.Queue[object] = asyncio.Queue()

    async def question(self) -> object:
        self.asked += 1
        answer = await self.answers.get()
        if isinstance(answer, Exception):
            raise answer
        return answer


def test_an_unanswered_question_stays_open_and_is_answered_late() -> None:
    async def body() -> None:
        process = Process()
        probe = Probe(process.question)
        for _ in range(3):
            with pytest.raises(TimeoutError):
                await probe.ask(0.01)
        assert process.asked == 1
        process.answers.put_nowait("late")
        assert await probe.ask(5) == "late"
        process.answers.put_nowait("fresh")
        assert await probe.ask(5) == "fresh"
        assert process.asked == 2

    asyncio.run(body())


def test_those_who_ask_at_once_share_the_answer_and_the_error() -> None:
    async def body() -> None:
        process = Process()
        probe = Probe(process.question)
        both = asyncio.gather(probe.ask(5), probe.ask(5))
        process.answers.put_nowait("one")
        assert await both == ["one", "one"]
        both = asyncio.gather(probe.ask(5), probe.ask(5), return_exceptions=True)
        process.answers.put_nowait(OSError("gone"))
        assert [str(error) for error in await both] == ["gone", "gone"]
        assert process.asked == 2

    asyncio.run(body())


def test_one_that_leaves_does_not_take_the_question_along() -> None:
    async def body() -> None:
        process = Process()
        probe = Probe(process.question)
        leaving = asyncio.create_task(probe.ask(5))
        await asyncio.sleep(0)
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        process.answers.put_nowait("still")
        assert await probe.ask(5) == "still"
        assert process.asked == 1

    asyncio.run(body())
