"""A question to a process that may hang: never more than one of them is open.

Asking a hung process again and again would leave a queue of calls there, to be worked through when
it comes back, and take the places its other control calls need. So a question that has not been
answered in time stays open, and who asks next waits for the same answer.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

Answer = TypeVar("Answer")


class Probe(Generic[Answer]):
    """The one open question to one process."""

    def __init__(self, question: Callable[[], Awaitable[Answer]]) -> None:
        self._question = question
        self._open: asyncio.Future[Answer] | None = None

    async def ask(self, timeout_s: float) -> Answer:
        """The answer; may be called by several at once, who share it.

        Raises:
            TimeoutError: none came within `timeout_s`. Whatever the question raises, too.
        """
        if self._open is None:
            self._open = asyncio.ensure_future(self._question())
            self._open.add_done_callback(_look_at)
        asked = self._open
        # `wait` leaves the question open, where `wait_for` would give it up.
        done, _ = await asyncio.wait({asked}, timeout=timeout_s)
        if not done:
            raise TimeoutError
        if self._open is asked:
            self._open = None
        return asked.result()


def _look_at(answer: "asyncio.Future[Answer]") -> None:
    """An error that comes after everybody has given up is nobody's any more."""
    if not answer.cancelled():
        answer.exception()
