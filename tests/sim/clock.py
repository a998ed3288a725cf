"""Virtual time: things happen in the order of their times, and nothing waits."""

import heapq
from collections.abc import Callable


class Clock:
    """now_s only moves when the next thing happens."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._number = 0
        self._queue: list[tuple[float, int, Callable[[], None]]] = []

    def after(self, delay_s: float, do: Callable[[], None]) -> None:
        """Call `do` in `delay_s` from now; things of one time in the order they were asked for."""
        self._number += 1
        heapq.heappush(self._queue, (self.now_s + delay_s, self._number, do))

    def run(self, until_s: float) -> None:
        while self._queue and self._queue[0][0] <= until_s:
            self.now_s, _, do = heapq.heappop(self._queue)
            do()
        self.now_s = until_s
