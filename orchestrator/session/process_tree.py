"""Everything this process has started: find it, end it, remove what it left in shared memory.

Only descendants of this process are ever touched. Orphans among them come back to this process
instead of to init (`adopt_orphans`), so that a process whose parent died first is still found.
"""

import contextlib
import ctypes
import logging
import os
import sys
import time
from collections.abc import Collection, Iterable
from pathlib import Path

import psutil

log = logging.getLogger(__name__)

EXIT_TIMEOUT_S = 3.0
"""How long processes that are on their way out may take before they are killed."""
SHARED_MEMORY = Path("/dev/shm")
PYTHON_SEGMENTS = ("psm_", "sem.mp-")
"""What `multiprocessing` calls its segments and semaphores; vLLM makes some when it uses several
processes, and a killed process does not unlink its own."""

_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent dies. Linux only."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def descendants(spared: Collection[int] = ()) -> list[psutil.Process]:
    """Children, their children and so on, but zombies and the process ids in `spared`."""
    found = psutil.Process().children(recursive=True)
    return [p for p in found if p.pid not in spared and _alive(p)]


def end_descendants(timeout_s: float = EXIT_TIMEOUT_S, spared: Collection[int] = ()) -> None:
    """Wait until every descendant has ended; kill those that have not after `timeout_s`."""
    deadline_s = time.monotonic() + timeout_s
    while alive := descendants(spared):
        # A few at a time: what they leave behind becomes ours, and is seen in the next round.
        psutil.wait_procs(alive, timeout=0.05)
        if time.monotonic() > deadline_s:
            kill(descendants(spared))
    # Reaps what has ended: each was a child, or became one when its parent died.
    children = [p for p in psutil.Process().children() if p.pid not in spared]
    psutil.wait_procs(children, timeout=0.05)


def reap_orphans(own: Collection[int]) -> None:
    """Have the system forget adopted processes that have ended, which would stay as zombies.

    own: processes that this one started itself; whoever did so waits for them.
    """
    with contextlib.suppress(ChildProcessError):  # there is no child at all
        while ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            if ended.si_pid in own:
                return
            os.waitpid(ended.si_pid, os.WNOHANG)


def shared_memory(processes: Iterable[psutil.Process]) -> set[Path]:
    """Python's segments in /dev/shm that these have mapped."""
    found = set()
    for process in processes:
        try:
            maps = Path(f"/proc/{process.pid}/maps").read_text()
        except OSError:  # it has just ended
            continue
        # address, permissions, offset, device, inode, path
        mapped = (line.split(maxsplit=5) for line in maps.splitlines())
        found |= {Path(fields[5]) for fields in mapped if len(fields) == 6}
    return {
        path
        for path in found
        if path.parent == SHARED_MEMORY and path.name.startswith(PYTHON_SEGMENTS)
    }


def remove_shared_memory(segments: Iterable[Path]) -> None:
    """Unlink segments that outlived the processes that made them."""
    for segment in segments:
        segment.unlink(missing_ok=True)


def kill(processes: Iterable[psutil.Process]) -> None:
    """SIGKILL; one that is gone already is none too few."""
    for process in processes:
        try:
            log.debug("killing %s (pid %d), which did not end", process.name(), process.pid)
            process.kill()
        except psutil.NoSuchProcess:
            continue


def _alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
