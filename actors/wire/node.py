"""Which machine this process runs on.

Peers with the same identity try each other's Unix sockets first and fall back to TCP where those
cannot be reached (`Peer.addresses_from`). So it does not matter that some peers share a machine and
no folders: two containers on one host's network have the same host name and boot id, and use TCP,
unless a volume gives them a folder in common, where sockets and memory segments work. The mount
namespace is no part of the identity on purpose: processes of one node may have several (each
`ip netns exec` makes one, and so may a runtime environment of Ray), and share their sockets.
"""

import functools
import socket
from pathlib import Path


@functools.cache
def node_id() -> str:
    """Host name and boot id: equal for processes that one failing machine takes along.

    Containers with a network of their own have different host names, restarts of one machine
    different boot ids.
    """
    boot_id = Path("/proc/sys/kernel/random/boot_id")
    boot = boot_id.read_text().strip()[:8] if boot_id.exists() else "unknown"
    return f"{socket.gethostname()}/{boot}"
