"""A dispatcher's links to the shards of the newest view: opened when needed, dropped when lost."""

import contextlib
import logging
import time

import numpy as np
import numpy.typing as npt

from actors.dispatch.mesh_view import MeshView
from actors.dispatch.shared_calls import SharedCalls
from actors.dispatch.view_source import ViewSource
from actors.wire.bell import Bell
from actors.wire.frame import RowCoding
from actors.wire.link import ClientLink, open_link
from actors.wire.node import node_id
from actors.wire.shared_link import SharedLink

log = logging.getLogger(__name__)

RETRY_DOWN_SHARD_S = 1.0
"""After this long a shard that was lost is tried again, even if the view did not change."""


class ShardLinks:
    """`follow` comes first; shards are numbered as in the view that it adopted."""

    def __init__(self, views: ViewSource, secret: bytes) -> None:
        self.bell = Bell()
        self._views = views
        self._secret = secret
        self._view: MeshView | None = None
        self._usable = np.zeros(0, np.bool_)
        self._links: dict[int, ClientLink] = {}
        self._down: dict[int, float] = {}
        self._shared = SharedCalls()
        self._shared_is_stale = True

    @property
    def view(self) -> MeshView:
        """The view that is followed."""
        assert self._view is not None, "follow() comes first"
        return self._view

    def follow(self) -> MeshView:
        """Adopt a new view, and forgive shards that have been down for a while."""
        view = self._views.current()
        if view is not self._view:
            self._adopt(view)
        elif self._down:
            now_s = time.monotonic()
            if any(retry_s <= now_s for retry_s in self._down.values()):
                self._down = {s: retry_s for s, retry_s in self._down.items() if retry_s > now_s}
                self._see_who_is_usable()
        return view

    def _adopt(self, view: MeshView) -> None:
        before = self._view.shards if self._view else ()
        for shard in list(self._links):
            if shard >= len(view.shards) or view.shards[shard] != before[shard]:
                self._links.pop(shard).close()
        self._view, self._shared_is_stale = view, True
        self._down.clear()
        self._see_who_is_usable()

    def _see_who_is_usable(self) -> None:
        self._usable = np.ones(len(self.view.shards), np.bool_)
        self._usable[list(self._down)] = False

    def usable(self, refused: set[int]) -> npt.NDArray[np.bool_]:
        """bool [D], False for shards that are down or in `refused`."""
        if not refused:
            return self._usable
        usable = self._usable.copy()
        usable[list(refused)] = False
        return usable

    def open(self, shard: int) -> ClientLink:
        """The link to a shard. Raises LinkClosed, HandshakeError, OSError."""
        link = self._links.get(shard)
        if link is None:
            address = self.view.shards[shard].address_from(node_id())
            link = self._links[shard] = open_link(address, self._secret, self.bell)
        return link

    def get(self, shard: int) -> ClientLink | None:
        """The link to a shard, if it is open."""
        return self._links.get(shard)

    def posted_on(self, link: ClientLink) -> None:
        """Take notice of the segment that a link has got, or of a larger one."""
        if isinstance(link, SharedLink) and not self._shared.uses(link):
            self._shared_is_stale = True

    def shared(self) -> SharedCalls:
        """The segments of all links as they are now."""
        if self._shared_is_stale:
            self._shared.follow(self._links, len(self.view.shards))
            self._shared_is_stale = False
        return self._shared

    def coding(self, shard: int) -> RowCoding:
        """How rows travel to a shard."""
        on_this_node = self.view.shards[shard].node == node_id()
        return RowCoding.BF16 if on_this_node else self.view.rows_between_nodes

    def lose(self, shard: int, error: Exception) -> None:
        """Close the link to a shard and keep off it for a while."""
        name = self._view.shards[shard].id if self._view else str(shard)
        log.warning("lost shard %s: %s", name, error)
        with contextlib.suppress(KeyError):
            self._links.pop(shard).close()
            self._shared_is_stale = True
        self._down[shard] = time.monotonic() + RETRY_DOWN_SHARD_S
        self._see_who_is_usable()

    def close(self) -> None:
        for link in self._links.values():
            link.close()
        self._links.clear()
        self.bell.close()
