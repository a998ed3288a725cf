"""What Ray has on this node: processes of its actors, and their logs."""

import contextlib
import os
import signal
from pathlib import Path

import psutil

RAY_TITLE = "ray::"
"""How the titles of Ray's Python processes begin."""


def kill_ray_process(pid: int) -> None:
    """SIGKILL, unless the process is gone or its number belongs to a process that is not Ray's."""
    with contextlib.suppress(psutil.Error, OSError):
        process = psutil.Process(pid)
        if process.cmdline()[0].startswith(RAY_TITLE):
            os.kill(process.pid, signal.SIGKILL)


def node_logs() -> Path:
    """Folder of this node's Ray logs, which every process of the node writes to.

    Works in the process that joined Ray and in every actor.
    """
    import ray

    # Ray tells the path of its session nowhere else.
    node = ray._private.worker._global_node
    assert node is not None
    return Path(node.get_logs_dir_path())
