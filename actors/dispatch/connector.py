"""Opens links to the peers of the newest view, off the call path.

Every peer without a link has a thread that connects, waits for the greeting and hands the link
over; after a failure it pauses, twice as long each time and never at the same moment as other
clients. So a peer that cannot be reached or hangs in its greeting delays nobody.
"""

import logging
import random
import threading
from collections.abc import Callable, Sequence

from actors.dispatch.mesh_view import MeshView, Peer
from actors.dispatch.view_source import ViewSource
from actors.wire.address import Address
from actors.wire.handshake import HandshakeError
from actors.wire.link import ClientLink
from actors.wire.node import node_id

log = logging.getLogger(__name__)

FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 5.0
VIEW_LOOK_S = 1.0
"""How often the thread that follows the views looks whether it has to end."""

PeerKey = tuple[str, int, tuple[Address, ...]]
"""Id, incarnation and addresses from here, best first: what makes a link that one's."""


def key_of(peer: Peer) -> PeerKey:
    """Raises LookupError: the peer cannot be reached from this node."""
    return peer.id, peer.incarnation, peer.addresses_from(node_id())


def same_links(before: Sequence[Peer], after: Sequence[Peer]) -> bool:
    """Whether links to the ones are links to the others, in the same order.

    Peers that a view left as they were are the same objects, so that this takes microseconds.
    """
    return len(before) == len(after) and not any(
        a is not b
        and (a.id, a.incarnation, a.node, a.addresses) != (b.id, b.incarnation, b.node, b.addresses)
        for a, b in zip(before, after, strict=True)
    )


class Connector:
    """Threads that open links. `has_news`: a link has come that `take` did not give yet."""

    def __init__(
        self,
        views: ViewSource,
        peers_of: Callable[[MeshView], Sequence[Peer]],
        open_link: Callable[[Address], ClientLink],
    ) -> None:
        """peers_of: whom a view says to connect to. open_link: blocks; raises OSError or
        HandshakeError."""
        self.has_news = False
        self._views, self._peers_of, self._open = views, peers_of, open_link
        self._changed = threading.Condition()
        self._wanted: set[PeerKey] | None = None
        self._linked: set[PeerKey] = set()
        self._connecting: set[PeerKey] = set()
        self._tried: set[PeerKey] = set()
        self._arrived: list[tuple[PeerKey, ClientLink]] = []
        self._closed = False
        self._random = random.Random()
        threading.Thread(target=self._follow, name="mesh-links", daemon=True).start()

    # -- called by the dispatcher

    def take(self) -> list[tuple[PeerKey, ClientLink]]:
        """The links that have come since the last time."""
        with self._changed:
            self.has_news = False
            arrived, self._arrived = self._arrived, []
            return arrived

    def lost(self, key: PeerKey) -> None:
        """A link that `take` gave is no more."""
        with self._changed:
            self._linked.discard(key)
            self._connect_missing(after_loss=True)

    def wait_tried(self, timeout_s: float) -> None:
        """Return when every peer of the view has a link or has failed to give one."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._wanted is not None and self._wanted <= self._tried, timeout_s
            )

    def close(self) -> None:
        """Links that were not taken are closed, and no more are opened."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for _, link in self.take():
            link.close()

    # -- in threads

    def _follow(self) -> None:
        view: MeshView | None = None
        while not self._closed:
            current = self._views.current()
            if view is None or not same_links(self._peers_of(view), self._peers_of(current)):
                self._aim(current)
            view = current
            self._views.wait_change(view, VIEW_LOOK_S)

    def _aim(self, view: MeshView) -> None:
        wanted = set()
        for peer in self._peers_of(view):
            try:
                wanted.add(key_of(peer))
            except LookupError as error:
                log.warning("%s", error)
        with self._changed:
            self._wanted = wanted
            self._linked &= wanted
            self._tried &= wanted
            self._connect_missing(after_loss=False)
            self._changed.notify_all()

    def _connect_missing(self, after_loss: bool) -> None:
        for key in (self._wanted or set()) - self._linked - self._connecting:
            self._connecting.add(key)
            threading.Thread(
                target=self._connect, args=(key, after_loss), name=f"mesh-link {key[0]}",
                daemon=True,
            ).start()  # fmt: skip

    def _connect(self, key: PeerKey, after_loss: bool) -> None:
        pause_s = FIRST_PAUSE_S
        if after_loss and not self._pause(key, pause_s):
            return
        failure = ""
        while True:
            link, reason = self._try(key)
            if link is not None:
                self._hand_over(key, link)
                return
            if reason != failure:
                log.warning("no link to %s at %s: %s", key[0], key[2], reason)
            failure = reason
            if not self._pause(key, pause_s):
                return
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def _try(self, key: PeerKey) -> tuple[ClientLink | None, str]:
        """A link to exactly this incarnation, or why there is none.

        Addresses are tried until one leads to it. A peer that is there and does not answer in time
        is busy, and is not looked for elsewhere.
        """
        peer, incarnation, addresses = key
        reasons: list[str] = []
        for address in addresses:
            try:
                link = self._open(address)
            except (TimeoutError, BlockingIOError) as error:
                reasons.append(f"{address}: {error}")
                break
            except (OSError, HandshakeError) as error:
                reasons.append(f"{address}: {error}")
                continue
            if incarnation in (0, link.incarnation):
                if reasons:
                    log.info("%s is reached at %s: %s", peer, address, "; ".join(reasons))
                return link, ""
            link.close()
            reasons.append(f"{address}: another process answers there")
        return None, "; ".join(reasons)

    def _hand_over(self, key: PeerKey, link: ClientLink) -> None:
        with self._changed:
            self._connecting.discard(key)
            if self._is_wanted(key):
                self._linked.add(key)
                self._tried.add(key)
                self._arrived.append((key, link))
                self.has_news = True
                self._changed.notify_all()
                return
        link.close()

    def _pause(self, key: PeerKey, pause_s: float) -> bool:
        """Between half and all of `pause_s`; False when the peer is no longer wanted."""
        with self._changed:
            self._tried.add(key)
            self._changed.notify_all()
            unwanted = self._changed.wait_for(
                lambda: not self._is_wanted(key), pause_s * self._random.uniform(0.5, 1.0)
            )
            if unwanted:
                self._connecting.discard(key)
            return not unwanted

    def _is_wanted(self, key: PeerKey) -> bool:
        return not self._closed and self._wanted is not None and key in self._wanted
