"""One bell for all servers that a client shares memory with: a single write wakes every sleeper.

Ringing them one by one would let the first one woken take the client's core, for as long as its
kernel runs, before the second one hears of its call. Servers watch the eventfd edge-triggered, so
nobody has to read it.
"""

import contextlib
import os

COUNTER = (1).to_bytes(8, "little")


class Bell:
    """`needed` is set when a call was posted to a server that sleeps."""

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.needed = False

    def ring(self) -> None:
        """Wake the servers if one of them sleeps on a call."""
        if self.needed:
            self.needed = False
            with contextlib.suppress(BlockingIOError):  # a counter that is full still wakes
                os.write(self.fd, COUNTER)

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
