"""One place to wait for answers on all links of a client, whatever their transports.

A wait spins for a while if that pays (see `spin_time`), then blocks on all sockets at once. Links
that are polled make progress in both; the others are written to by the servers themselves.
"""

import os
import select
import time
from collections.abc import Sequence

from actors.wire.link import ClientLink, LinkClosed
from actors.wire.slots import Parts, say_asleep, unanswered, yield_until_answered
from actors.wire.spin_time import DEFAULT_SPIN_US, SpinTime
from native.atomics import spin

READ, WRITE = select.POLLIN, select.POLLOUT
SEND_PAUSE_MS = 1.0
"""A peer that took nothing for this long gets the rest of what it was sent while its answer is
waited for."""


class Waiting:
    """The sockets of a client's links. lost: links that ended since this was last looked at."""

    def __init__(self) -> None:
        self.lost: list[tuple[ClientLink, LinkClosed]] = []
        self._poll = select.poll()
        self._links: dict[int, ClientLink] = {}
        self._polled: list[ClientLink] = []
        self._writing: set[int] = set()
        self._spin_time = SpinTime()

    def watch(self, links: Sequence[ClientLink]) -> None:
        """From now on these links are looked at, and no others."""
        for fd in self._links:
            self._poll.unregister(fd)
        self._links = {link.fileno(): link for link in links if not link.closed}
        self._polled = [link for link in self._links.values() if link.is_polled]
        self._writing.clear()
        for fd in self._links:
            self._poll.register(fd, READ)

    def answered(self, parts: Parts, until_s: float) -> bool:
        """Whether every part was answered by `until_s` (`time.monotonic()`); False also as soon as
        a link is lost."""
        if unanswered(parts) == 0:
            return True
        start_s = time.perf_counter()
        done = self._spin(parts, self._spin_time.spin_s)
        spun_s = time.perf_counter() - start_s
        if not done:
            done = self._sleep(parts, until_s)
        self._spin_time.learn(time.perf_counter() - start_s, spun_s)
        return done

    def news(self, tables: Sequence[Parts], until_s: float) -> None:
        """Return when a part of one of the tables is answered, a link is lost, or at `until_s`."""
        before = sum(map(unanswered, tables))
        while not self.lost:
            away = sum(say_asleep(parts, 1) for parts in tables)
            left_s = until_s - time.monotonic()
            if away == before and left_s > 0:
                self._look(1000 * left_s)
            away = sum(say_asleep(parts, 0) for parts in tables)
            if away < before or left_s <= 0:
                return

    def send_rest(self) -> None:
        """Go on sending what sockets did not take at once, as long as they take some."""
        for link in self._polled:
            while link.wants_write and not link.closed and not self.lost:
                if not self._look(SEND_PAUSE_MS):
                    return

    def look(self) -> None:
        """Let links go on whose sockets are ready now."""
        self._look(0.0)

    def _spin(self, parts: Parts, spin_s: float) -> bool:
        if not self._polled:
            return spin(lambda yields: yield_until_answered(parts, yields), spin_s)

        def look(_: int) -> bool:
            if not self._look(0.0):
                os.sched_yield()
            return bool(self.lost) or unanswered(parts) == 0

        return spin(look, spin_s) and not self.lost

    def _sleep(self, parts: Parts, until_s: float) -> bool:
        while not self.lost:
            away = say_asleep(parts, 1)
            left_s = until_s - time.monotonic()
            if away and left_s > 0:
                self._look(1000 * left_s)
            if say_asleep(parts, 0) == 0:
                return True
            if left_s <= 0:
                return False
            # Whoever answered first has left a core free, and the others should be close.
            if self._spin(parts, DEFAULT_SPIN_US * 1e-6):
                return True
        return False

    def _look(self, timeout_ms: float) -> bool:
        """Let links go on whose sockets are ready by then; whether there were any."""
        for link in self._polled:
            fd = link.fileno()
            if link.wants_write != (fd in self._writing):
                self._watch_writing(fd, link.wants_write)
        ready = self._poll.poll(timeout_ms)
        for fd, _ in ready:
            link = self._links[fd]
            try:
                link.progress()
            except LinkClosed as error:
                self._poll.unregister(fd)
                del self._links[fd]
                self._polled = [other for other in self._polled if other is not link]
                self.lost.append((link, error))
        return bool(ready)

    def _watch_writing(self, fd: int, wanted: bool) -> None:
        self._poll.modify(fd, READ | WRITE if wanted else READ)
        if wanted:
            self._writing.add(fd)
        else:
            self._writing.discard(fd)
