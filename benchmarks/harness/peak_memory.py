"""The most memory that processes take while something goes on."""

import threading
from collections.abc import Mapping
from typing import Self

import psutil

MIB = 1 << 20
LOOK_S = 0.02


class Peak:
    """Most memory of processes, by name, while the `with` block runs."""

    def __init__(self, processes: Mapping[str, psutil.Process]) -> None:
        self._processes = processes
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.before = self._now()
        self.most = dict(self.before)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def grown_mib(self, name: str) -> float:
        return (self.most[name] - self.before[name]) / MIB

    def _now(self) -> dict[str, int]:
        return {name: one.memory_info().rss for name, one in self._processes.items()}

    def _watch(self) -> None:
        while not self._stop.wait(LOOK_S):
            now = self._now()
            self.most = {name: max(now[name], most) for name, most in self.most.items()}
