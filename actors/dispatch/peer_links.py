"""A client's links by peer: taken from the connector, watched, grown, dropped when lost.

A peer is its id and incarnation, so a view that changes anything else closes nothing. A link that
is not wanted any more, or was replaced by a larger one, stays until its calls are answered. A slot
whose answer nobody waits for any more is **owed**: it is given back when the answer has come.
"""

import logging
from collections.abc import Callable, Sequence

from actors.dispatch.connector import Connector, PeerKey, key_of
from actors.dispatch.mesh_view import MeshView, Peer
from actors.dispatch.report import ShardTally, Tally
from actors.dispatch.view_source import ViewSource
from actors.wire.address import Address
from actors.wire.bell import Bell
from actors.wire.device_memory import DeviceMemory
from actors.wire.exchange import Posted, link_with_room
from actors.wire.link import ClientLink, LinkClosed, LinkTimeout
from actors.wire.transports import open_link
from actors.wire.waiting import Waiting

log = logging.getLogger(__name__)


class PeerLinks:
    """For one thread. losses: links lost so far. changes: how often the set of links changed.
    tally: what is reported of the peers."""

    def __init__(
        self,
        views: ViewSource,
        peers_of: Callable[[MeshView], Sequence[Peer]],
        secret: bytes,
        device: DeviceMemory | None = None,
    ) -> None:
        """peers_of: whom of a view to connect to. device: whose memory to share, if the view says
        so."""
        self.bell = Bell()
        self.waiting = Waiting()
        self.losses = 0
        self.tally = Tally()
        self.changes = 0
        self._secret, self._device = secret, device
        self.connector = Connector(
            views,
            peers_of,
            lambda address: self._open(address, views.current().device_ipc),
        )
        self._links: dict[PeerKey, ClientLink] = {}
        self._leaving: list[ClientLink] = []
        self._late: set[ClientLink] = set()
        self._wrong: set[int] = set()
        """Incarnations that gave wrong answers."""
        self._owed: list[tuple[Posted, float]] = []
        """Calls nobody waits for, and when their links are given up."""

    def _open(self, address: Address, device_ipc: bool) -> ClientLink:
        return open_link(address, self._secret, self.bell, self._device if device_ipc else None)

    def get(self, peer: Peer) -> ClientLink | None:
        """The link to a peer, if there is one."""
        try:
            return self._links.get(key_of(peer))
        except LookupError:
            return None

    def want(self, peers: Sequence[Peer]) -> None:
        """Let go of links to everybody else."""
        reachable = []
        for peer in peers:
            try:
                reachable.append(key_of(peer))
            except LookupError:
                continue  # the connector says so
        for key in set(self._links) - set(reachable):
            self._leaving.append(self._links.pop(key))
        self._change()

    def refresh(self, now_s: float) -> None:
        """Take in links that have come, give back slots that have been answered meanwhile, and give
        up who has not answered for too long. Cheap where there is nothing to do."""
        if self.connector.has_news:
            for key, link in self.connector.take():
                self._links[key] = link
            self._change()
        if self._owed or self._late or self._leaving:
            self._settle(now_s)
        if self.waiting.lost:
            self.drop_lost()

    def drop_lost(self) -> None:
        """Close the links that were found to have ended while others were waited for."""
        lost, self.waiting.lost = self.waiting.lost, []
        for link, error in lost:
            self.lose(link, error)

    def lose(self, link: ClientLink, error: Exception) -> None:
        """Close a link; its peer comes back when it has greeted again."""
        if link.closed:
            return
        link.close()
        self.losses += 1
        self._late.discard(link)
        self._owed = [owed for owed in self._owed if owed[0].link is not link]
        if link in self._leaving:
            self._leaving.remove(link)
        for key in [key for key, known in self._links.items() if known is link]:
            log.warning("lost %s: %s", key[0], error, extra={"shard": key[0]})
            self.tally.shard(key[0]).lost += 1
            del self._links[key]
            self.connector.lost(key)
        self._change()

    def with_room(
        self, link: ClientLink, request_bytes: int, answer_bytes: int
    ) -> ClientLink | None:
        """The link to use for such bodies, with a free slot; None: it was lost."""
        segment = link.segment
        try:
            grown = link_with_room(link, request_bytes, answer_bytes)
        except LinkClosed as error:
            self.lose(link, error)
            return None
        if grown is not link:
            self._leaving.append(link)
            for key in [key for key, known in self._links.items() if known is link]:
                self._links[key] = grown
        if grown.segment is not segment:
            self._change()
        return grown

    def is_late(self, link: ClientLink) -> bool:
        """It gets no rows that others can take: it owes an answer, or gave a wrong one."""
        return link in self._late or link.incarnation in self._wrong

    def is_wrong(self, incarnation: int) -> bool:
        """Whether that process gave a wrong answer."""
        return incarnation in self._wrong

    def distrust(self, link: ClientLink) -> None:
        """It gave a wrong answer: from now on its process counts as late, and is reported."""
        if link.incarnation not in self._wrong:
            self._wrong.add(link.incarnation)
            self.changes += 1

    def mark_late(self, link: ClientLink) -> None:
        """It missed a soft deadline: until it is idle it is not counted on."""
        if link not in self._late:
            log.warning("%s is late", link.address)
            self._late.add(link)
            self.tally_of(link).late += 1
            self.changes += 1

    def tally_of(self, link: ClientLink) -> ShardTally:
        """What is reported of the peer that a link leads to; of a link let go of, nothing is."""
        for key, known in self._links.items():
            if known is link:
                return self.tally.shard(key[0])
        return ShardTally()

    def owe(self, call: Posted, give_up_s: float) -> None:
        """Nobody waits for this call; its link is given up if it is not answered by then."""
        if not call.link.closed and not call.free():
            self._owed.append((call, give_up_s))

    def _settle(self, now_s: float) -> None:
        self.waiting.look()
        self.drop_lost()
        for call, give_up_s in self._owed:
            if give_up_s < now_s and not call.is_answered:
                self.lose(call.link, LinkTimeout("hard deadline"))
        self._owed = [owed for owed in self._owed if not owed[0].free()]
        for link in [link for link in self._late if link.is_idle]:
            log.info("%s is back", link.address)
            self._late.discard(link)
            self.changes += 1
        for link in [link for link in self._leaving if link.is_idle]:
            self._leaving.remove(link)
            link.close()
            self._watch()

    def _change(self) -> None:
        self.changes += 1
        self._watch()

    def _watch(self) -> None:
        self.waiting.watch([*self._links.values(), *self._leaving])

    def close(self) -> None:
        self.connector.close()
        for link in [*self._links.values(), *self._leaving]:
            link.close()
        self._links.clear()
        self._leaving.clear()
        self.waiting.watch([])
        self.bell.close()
