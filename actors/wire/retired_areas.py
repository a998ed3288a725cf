"""Device memory of links that were closed, kept until the server can write to it no more.

Host memory of a segment lives as long as one side maps it. Memory of a device goes back to the
client's allocator, which gives it to the next tensor, whether or not a server that hung in a call
still writes its sums there. So the socket of such a link is closed for sending only: a living
server lets go of the area when it reads that end, and then ends its side; a dead one's system does.
"""

import contextlib
import socket
import threading
import time

from actors.wire.device_area import DeviceArea

AFTER_END_S = 1.0
"""A process that is killed loses its sockets before the driver has ended its work."""


class RetiredAreas:
    """Of a process; any thread may use it."""

    def __init__(self) -> None:
        self._kept: list[tuple[socket.socket, DeviceArea]] = []
        self._ended: list[tuple[float, DeviceArea]] = []
        self._changing = threading.Lock()

    def __len__(self) -> int:
        with self._changing:
            return len(self._kept) + len(self._ended)

    def add(self, sock: socket.socket, area: DeviceArea) -> None:
        """Takes the link's socket, which does not block."""
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_WR)
        with self._changing:
            self._kept.append((sock, area))
        self.sweep()

    def sweep(self) -> None:
        """Let go of what no server can write to. Called whenever a link is opened or closed."""
        now_s = time.monotonic()
        with self._changing:
            self._ended = [one for one in self._ended if one[0] > now_s]
            ended = [one for one in self._kept if _has_ended(one[0])]
            self._kept = [one for one in self._kept if one not in ended]
            for sock, area in ended:
                sock.close()
                self._ended.append((now_s + AFTER_END_S, area))


def _has_ended(sock: socket.socket) -> bool:
    """Whether the server has closed its side; what it said before is read over."""
    try:
        while sock.recv(4096):
            pass
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


RETIRED = RetiredAreas()
