"""A call that lasts as long as its process: how who watches learns of a death at once.

The watcher keeps one call to `hold` open. It ends with an error as soon as Ray knows that the
process has ended, which is sooner than any probe, and costs nothing meanwhile but one thread.
"""

import threading

Watcher = tuple[int, int]
"""(term, number): a later controller's is greater, and takes the place of an earlier one's."""


class Watched:
    """One process's open call."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._newest: Watcher = (0, 0)
        self._released = False

    def hold(self, watcher: Watcher) -> None:
        """Return when a newer watcher holds, or at `release`; at once if there is a newer one."""
        with self._changed:
            self._newest = max(self._newest, watcher)
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._released or self._newest > watcher)

    def release(self) -> None:
        """The process is about to end in order."""
        with self._changed:
            self._released = True
            self._changed.notify_all()
