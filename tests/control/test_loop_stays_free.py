"""The loop that answers questions waits for no decision and no plan, however long they take."""

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.control import runner as runner_module
from orchestrator.control.planning import make_plan
from orchestrator.control.step import step
from tests.control.test_runner import Mesh

GIVE_UP_S = 20.0


class Waits:
    """A function that goes on only when the loop answered after it had begun."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._begun, self._answered = threading.Event(), threading.Event()
        self.calls = 0
        self.blocked = 0

    def __call__(self, *arguments: Any) -> Any:
        self.calls += 1
        self._answered.clear()
        self._begun.set()
        if not self._answered.wait(GIVE_UP_S if not self.blocked else 0.0):
            self.blocked += 1
        return self._function(*arguments)

    async def answer(self) -> None:
        """What a question does: it needs a turn of the loop."""
        while True:
            if self._begun.is_set():
                self._begun.clear()
                self._answered.set()
            await asyncio.sleep(0.001)


@pytest.mark.parametrize("slow", ["step", "plan"])
def test_the_loop_answers_while_the_core_decides_or_plans(
    slow: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = Waits({"step": step, "plan": make_plan}[slow])

    async def main() -> None:
        mesh = Mesh(tmp_path)
        if slow == "step":
            monkeypatch.setattr(runner_module, "step", waits)
        else:
            mesh.runner._plan = waits
        answering = asyncio.create_task(waits.answer())
        await mesh.runner.start()
        try:
            await mesh.placed()
        finally:
            answering.cancel()
            await mesh.runner.stop()

    asyncio.run(main())
    assert waits.calls
    assert waits.blocked == 0
