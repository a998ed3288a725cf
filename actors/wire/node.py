"""Which machine this process runs on, as far as sharing sockets and memory goes."""

import functools
import socket
from pathlib import Path


@functools.cache
def node_id() -> str:
    """Host name and boot id: equal for two processes exactly when they can share Unix sockets.

    Containers of one machine have different host names, restarts of one machine different boot ids.
    """
    boot_id = Path("/proc/sys/kernel/random/boot_id")
    boot = boot_id.read_text().strip()[:8] if boot_id.exists() else "unknown"
    return f"{socket.gethostname()}/{boot}"
