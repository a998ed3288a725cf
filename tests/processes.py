"""Whether processes still do something."""

import time
from collections.abc import Callable, Iterable

import psutil

TIMEOUT_S = 60.0
"""For conditions that come true in a moment, on a machine that is busy."""


def living(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    """Those that have not ended. A zombie has: it only waits for somebody to ask how."""
    return [process for process in processes if _lives(process)]


def wait_until(condition: Callable[[], object], timeout_s: float = TIMEOUT_S) -> None:
    """Poll until `condition()` is true."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, f"not within {timeout_s:g} s"
        time.sleep(0.05)


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
