"""Processes of Ray's actors on this node."""

import contextlib
import os
import signal

import psutil

RAY_TITLE = "ray::"
"""How the titles of Ray's Python processes begin."""


def kill_ray_process(pid: int) -> None:
    """SIGKILL, unless the process is gone or its number belongs to a process that is not Ray's."""
    with contextlib.suppress(psutil.Error, OSError):
        process = psutil.Process(pid)
        if process.cmdline()[0].startswith(RAY_TITLE):
            os.kill(process.pid, signal.SIGKILL)
