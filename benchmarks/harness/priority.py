"""Keep other work on the machine out of a measurement: real-time priority while it lasts."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress


@contextmanager
def undisturbed(pids: Sequence[int], wanted: bool = True) -> Iterator[None]:
    """Run all threads of `pids` round-robin before everything else, for a `with` block.

    Raises:
        PermissionError: not root (nor CAP_SYS_NICE).
    """
    if not wanted:
        yield
        return
    _schedule(pids, os.SCHED_RR, 1)
    try:
        yield
    finally:
        _schedule(pids, os.SCHED_OTHER, 0)


def _schedule(pids: Sequence[int], policy: int, priority: int) -> None:
    for pid in pids:
        for thread in os.listdir(f"/proc/{pid}/task"):
            with suppress(ProcessLookupError):  # it ended meanwhile
                os.sched_setscheduler(int(thread), policy, os.sched_param(priority))
