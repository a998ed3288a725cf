"""Main module of the processes that vLLM starts for an engine.

multiprocessing runs its parent's main module again in each process that it spawns; an engine's
parent is Ray's worker program, which would be imported for nothing. This module stands in for it.
While vLLM is imported it puts garbage collection off: imports make millions of objects that stay,
and looking through them again and again is a fifth of the time. The plugin puts it back on.
"""

import gc
import importlib.util
import multiprocessing
import sys
from collections.abc import Iterator
from contextlib import contextmanager

if __name__ == "__mp_main__":
    gc.disable()


@contextmanager
def as_main_module() -> Iterator[None]:
    """Processes spawned in this block run this module in place of this process's main one."""
    main = sys.modules["__main__"]
    before = main.__spec__
    main.__spec__ = importlib.util.find_spec(__name__)
    try:
        yield
    finally:
        main.__spec__ = before


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """For imports; afterwards collection is as it was."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def leave_no_semaphores() -> None:
    """Make this process's semaphores without names that somebody would have to unlink.

    vLLM and tqdm make some for this process alone. A spawned process spawns its own in turn, so
    multiprocessing keeps names in /dev/shm for them, which stay if the process is killed together
    with Python's resource tracker, as Ray does. Where processes fork, as is the default on Linux,
    a name is unlinked at once. vLLM says itself how its own processes are to be started.
    """
    if sys.platform.startswith("linux"):
        multiprocessing.set_start_method("fork", force=True)
