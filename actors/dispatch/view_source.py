"""Where a dispatcher gets its views from, and how it says which one it follows.

A view counts as adopted by a dispatcher when none of its later calls is planned with an older one.
To say so costs a call two attributes of its `Follower`: it is counted there before it asks for the
current view, and the version it was planned with is noted. Whoever made a view current may then
conclude, without a word from the dispatcher: with no call under way the next one will ask and get
that view; otherwise a call has been planned with it once the version says so. An idle dispatcher
therefore holds up nobody.

A call that was already on its way with an older view is not waited for where others follow it
without a gap. It may still ask a shard for an expert that has been retired since, is told so, and
its rows are sent again.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from actors.dispatch.mesh_view import MeshView, ViewVersion
from actors.dispatch.report import DispatchReport

NO_VERSION = ViewVersion(0, 0)
"""Older than every view."""


@dataclass(slots=True, eq=False)
class Follower:
    """Written by a dispatcher's thread, read by the view source's.

    calls: under way. version: of the view that the newest of them was planned with.
    """

    calls: int = 0
    version: ViewVersion = NO_VERSION
    report: Callable[[], DispatchReport] | None = None
    """What the dispatcher tells of itself, asked for in the view source's thread."""

    def has_adopted(self, version: ViewVersion) -> bool:
        """Whether no later call is planned with a view older than `version`, which is current."""
        return self.calls == 0 or self.version >= version


class ViewSource(Protocol):
    """Views of one mesh, newest first."""

    def current(self) -> MeshView:
        """The newest view; the same object as long as nothing changed."""
        ...

    def wait_change(self, seen: MeshView, timeout_s: float) -> bool:
        """Block until `current()` is another object than `seen`; False when time ran out."""
        ...

    def join(self) -> Follower:
        """For a dispatcher that follows these views from now on."""
        ...

    def leave(self, follower: Follower) -> None:
        """The dispatcher makes no more calls."""
        ...


class FixedView:
    """`ViewSource` of a mesh that does not change."""

    def __init__(self, view: MeshView) -> None:
        self._view = view

    def current(self) -> MeshView:
        return self._view

    def wait_change(self, seen: MeshView, timeout_s: float) -> bool:
        time.sleep(timeout_s)
        return False

    def join(self) -> Follower:
        return Follower()

    def leave(self, follower: Follower) -> None:
        """Nobody waits for it."""
