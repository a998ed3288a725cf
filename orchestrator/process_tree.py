"""Everything this process has started: find it, end it, remove what it left in shared memory.

Only descendants of this process are ever touched. Orphans among them come back to this process
instead of to init (`adopt_orphans`), so that a process whose parent died first is still found.
"""

import ctypes
import logging
import sys
import time
from collections.abc import Iterable
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


def descendants() -> list[psutil.Process]:
    """Children, their children and so on, zombies left out."""
    return [p for p in psutil.Process().children(recursive=True) if _alive(p)]


def end_descendants(timeout_s: float = EXIT_TIMEOUT_S) -> None:
    """Wait until every descendant has ended; kill those that have not after `timeout_s`."""
    deadline_s = time.monotonic() + timeout_s
    while alive := descendants():
        # A few at a time: what they leave behind becomes ours, and is seen in the next round.
        psutil.wait_procs(alive, timeout=0.05)
        if time.monotonic() > deadline_s:
            _kill(descendants())
    # Reaps what has ended: each was a child, or became one when its parent died.
    psutil.wait_procs(psutil.Process().children(), timeout=0.05)


def shared_memory() -> set[Path]:
    """Python's segments in /dev/shm that descendants have mapped."""
    found = set()
    for process in descendants():
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


def _kill(processes: Iterable[psutil.Process]) -> None:
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
