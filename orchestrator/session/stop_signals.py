"""SIGINT and SIGTERM as events: the first asks for an orderly end, the second for a quick one."""

import signal
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Self

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequested(Exception):
    """A signal asked for the end while the mesh was starting."""


class StopSignals:
    """Handles the stop signals for the length of a `with` block. Main thread only.

    Handlers set events and nothing else, so no code is ever interrupted half-way.
    """

    def __init__(self) -> None:
        self._first = threading.Event()
        self._second = threading.Event()
        self._before = {number: signal.getsignal(number) for number in STOP_SIGNALS}

    def __enter__(self) -> Self:
        self.install()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def install(self) -> None:
        """Take the handlers (again): libraries may have put theirs in place."""
        for number in STOP_SIGNALS:
            signal.signal(number, self._handle)

    @property
    def second(self) -> bool:
        """Whether the person has asked twice."""
        return self._second.is_set()

    def check(self) -> None:
        """Raises StopRequested once a signal came."""
        if self._first.is_set():
            raise StopRequested

    def wait(self, timeout_s: float | None = None) -> bool:
        """Block until a signal comes; False when time ran out first."""
        return self._first.wait(timeout_s)

    def wait_second(self, finished: Callable[[], bool], timeout_s: float) -> bool:
        """Call `finished`, which may block a little, until it is true, a second signal comes or
        time runs out. Returns what it said last."""
        deadline_s = time.monotonic() + timeout_s
        while not (done := finished()):
            if self.second or time.monotonic() > deadline_s:
                break
        return done

    def _handle(self, number: int, _: FrameType | None) -> None:
        (self._second if self._first.is_set() else self._first).set()
