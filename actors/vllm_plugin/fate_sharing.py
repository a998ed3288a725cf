"""Processes that vLLM starts for an engine die with it, however it dies.

An engine actor that is killed with SIGKILL cannot stop the processes it started. So each of them
asks the kernel to be killed as soon as its own parent is gone (`PR_SET_PDEATHSIG`). vLLM loads its
general plugins in every process that it starts; the plugin calls `share_fate` there.
"""

import ctypes
import os
import signal
import sys

PARENT_VARIABLE = "EXPERTMESH_ENGINE_PARENT"
"""Process id of the engine actor; set by the engine, inherited by what it starts."""

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def share_fate() -> bool:
    """Die when the parent process dies. Does nothing, and returns False, outside of an engine's
    children.

    The kernel sends the signal when the *thread* that started this process ends, so the engine
    starts vLLM from a thread that it keeps. Linux only; elsewhere a killed engine leaves its
    children to notice by themselves.
    """
    engine_pid = int(os.environ.get(PARENT_VARIABLE, "0"))
    if engine_pid in {0, os.getpid()}:
        return False
    if not sys.platform.startswith("linux"):
        return True
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"prctl(PR_SET_PDEATHSIG): {os.strerror(error)}")
    # The parent may have died before the kernel was asked.
    if not descends_from(engine_pid):
        os.kill(os.getpid(), signal.SIGKILL)
    return True


def descends_from(ancestor_pid: int) -> bool:
    """Whether this process is a child, grandchild, ... of `ancestor_pid`."""
    pid = os.getpid()
    while pid > 1:
        pid = _parent_of(pid)
        if pid == ancestor_pid:
            return True
    return False


def _parent_of(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            # pid (comm) state ppid ...; comm may hold spaces and brackets itself.
            return int(stat.read().rpartition(b")")[2].split()[1])
    except FileNotFoundError:
        return 0
