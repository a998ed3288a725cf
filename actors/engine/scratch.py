"""A folder of an engine's own for vLLM's sockets and temporary files; it goes with the engine.

An engine that is killed cannot remove its folder. The folder's name tells whose it is, and the next
engine on the node removes those whose process is gone.
"""

import os
import re
import shutil
import tempfile
from pathlib import Path

import psutil

_NAME = re.compile(r"xmesh-engine-(\d+)-(\d+)-\w+")


def make_scratch(parent: Path | None = None) -> Path:
    """A new folder, mode 0700, below `parent` (default: the system's temporary folder)."""
    parent = parent or Path(tempfile.gettempdir())
    _remove_orphans(parent)
    return Path(tempfile.mkdtemp(prefix=f"xmesh-engine-{_namespace()}-{os.getpid()}-", dir=parent))


def _remove_orphans(parent: Path) -> None:
    for folder in parent.glob("xmesh-engine-*"):
        owner = _NAME.fullmatch(folder.name)
        # A process id means something in its namespace only: containers may share the folder.
        if owner and int(owner[1]) == _namespace() and not psutil.pid_exists(int(owner[2])):
            shutil.rmtree(folder, ignore_errors=True)


def _namespace() -> int:
    """Inode of this process's PID namespace; 0 where there are none."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return 0
