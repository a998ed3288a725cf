"""A dispatcher's links to the shards of the view it follows, as tables for compiled code."""

import time
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from actors.dispatch.connector import same_links
from actors.dispatch.link_speed import UNMEASURED, LinkMeter
from actors.dispatch.mesh_view import MeshView
from actors.dispatch.peer_links import PeerLinks
from actors.dispatch.report import ShardReport
from actors.dispatch.view_source import ViewSource
from actors.wire.device_memory import DeviceMemory
from actors.wire.frame import RowCoding
from actors.wire.link import ClientLink
from actors.wire.segment import Segment

FIRST_LINKS_S = 0.25
"""How long the first call waits for links that are not there yet, so that it does not leave out
shards that are only slower to greet."""

# Columns of LinkTable.slots: address of the control words (0: no link), number of slots, bytes of a
# slot, longest request body, place and longest body of the answer, and how rows travel.
CONTROL, SLOTS, SLOT_BYTES, REQUEST_BYTES, ANSWER_OFFSET, ANSWER_BYTES, CODING = range(7)
SLOT_COLUMNS = 7

# Columns of LinkTable.service: the shard's cost, the average of measured over predicted time, and
# when it was last heard of (`time.monotonic()`).
CALL_S, READ_S, ROW_S, SCALE, HEARD_S = range(5)
UNKNOWN = (1.0, 0.0)
"""Scale and time of a shard that has not answered yet."""
NO_SLOTS = (0,) * SLOT_COLUMNS
"""Of a shard without a link."""


@dataclass(frozen=True, slots=True, eq=False)
class LinkTable:
    """Links by shard of the view. Replaced as a whole, so flights keep the one they went out by.

    slots: int64 [D, SLOT_COLUMNS]; service: float64 [D, 5], kept up to date by `service.learn`.
    shares: whether some link shares memory of a device, and the view wants it used.
    """

    slots: npt.NDArray[np.int64]
    service: npt.NDArray[np.float64]
    links: list[ClientLink | None]
    segments: list[Segment | None]
    shares: bool = False


class ShardLinks(PeerLinks):
    """`follow` comes first; shards are numbered as in the view that it adopted."""

    def __init__(
        self, views: ViewSource, secret: bytes, device: DeviceMemory | None = None
    ) -> None:
        """device: where the engine has its rows, if it can share memory of it."""
        super().__init__(views, lambda view: view.shards, secret, device)
        self._views = views
        self._meter = LinkMeter(views, secret)
        self._view: MeshView | None = None
        self._tabulated = -1
        self._table = LinkTable(np.zeros((0, SLOT_COLUMNS), np.int64), np.zeros((0, 5)), [], [])
        self._linked = np.zeros(0, np.bool_)
        self._cost = np.zeros((0, 3))

    @property
    def view(self) -> MeshView:
        """The view that is followed."""
        assert self._view is not None, "follow() comes first"
        return self._view

    def follow(self) -> MeshView:
        """Adopt a new view and see which links there are."""
        view = self._views.current()
        if view is not self._view:
            self._adopt(view)
        self.refresh(time.monotonic())
        return view

    def _adopt(self, view: MeshView) -> None:
        before, self._view = self._view, view
        if before is None:
            self.connector.wait_tried(FIRST_LINKS_S)
        if before is None or not same_links(before.shards, view.shards):
            self.want(view.shards)
        elif (before.rows_between_nodes, before.device_ipc) == (
            view.rows_between_nodes, view.device_ipc,
        ):  # fmt: skip
            self._take_costs(before, view)
        else:
            self.changes += 1

    def _take_costs(self, before: MeshView, view: MeshView) -> None:
        """The links are the same; what calls on them cost may not be."""
        if self._tabulated != self.changes:
            return  # comes with the next table
        for shard, (old, new) in enumerate(zip(before.shards, view.shards, strict=True)):
            if old is not new:
                cost = new.cost
                self._table.service[shard, :SCALE] = cost.call_s, cost.read_s, cost.row_s
        self._set_cost()

    @property
    def table(self) -> LinkTable:
        """The links as they are now."""
        if self._tabulated != self.changes:
            self._tabulate()
        return self._table

    @property
    def cost(self) -> npt.NDArray[np.float64]:
        """float64 [D, 3] as in `MeshView.cost`; late shards cost infinitely much, so that they get
        rows only where no other has a link and holds the expert."""
        if self._tabulated != self.changes:
            self._tabulate()
        return self._cost

    def shares_with(self, device: torch.device) -> bool:
        """Whether rows on `device` can stay there for some shard."""
        if self._device is None or self._view is None:
            return False
        return self._device.device == device and self.table.shares

    def usable(self, without: set[ClientLink], late: bool = True) -> npt.NDArray[np.bool_]:
        """bool [D]: shards with a link. without: not to use. late: whether late ones count."""
        links = self.table.links
        if not without and late:
            return self._linked
        usable = self._linked.copy()
        for shard, link in enumerate(links):
            if link is not None and (link in without or (not late and self.is_late(link))):
                usable[shard] = False
        return usable

    def told(self) -> list[ShardReport]:
        """Each shard's state now, for a report; another thread may ask."""
        view, table = self._view, self._table
        if view is None or len(table.links) != len(view.shards):
            return []
        scales = table.service[:, SCALE].tolist()
        quiet_s = (time.monotonic() - table.service[:, HEARD_S]).tolist()
        speeds = self._meter.speeds
        return [
            ShardReport(
                peer.id,
                peer.incarnation,
                scale,
                is_late=link is not None and self.is_late(link),
                is_wrong=self.is_wrong(link.incarnation if link else peer.incarnation),
                round_trip_s=speed.round_trip_s,
                bytes_per_s=speed.bytes_per_s,
                quiet_s=max(0.0, quiet),
            )
            for peer, link, scale, quiet in zip(
                view.shards, table.links, scales, quiet_s, strict=True
            )
            for speed in [speeds.get((peer.id, peer.incarnation), UNMEASURED)]
        ]

    def close(self) -> None:
        self._meter.close()
        super().close()

    def _tabulate(self) -> None:
        view, before = self.view, self._table
        links = [self.get(peer) for peer in view.shards]
        learned = dict(zip(before.links, before.service[:, SCALE:].tolist(), strict=True))
        learned[None] = UNKNOWN
        service = [
            (peer.cost.call_s, peer.cost.read_s, peer.cost.row_s, *learned.get(link, UNKNOWN))
            for peer, link in zip(view.shards, links, strict=True)
        ]
        self._table = LinkTable(
            np.array([self._slots(link) for link in links], np.int64),
            np.array(service, np.float64),
            links,
            [link.segment if link else None for link in links],
            view.device_ipc and any(link is not None and link.area is not None for link in links),
        )
        self._linked = np.array([link is not None for link in links], np.bool_)
        self._set_cost()
        self._tabulated = self.changes

    def _slots(self, link: ClientLink | None) -> tuple[int, ...]:
        """Columns of `LinkTable.slots`."""
        if link is None:
            return NO_SLOTS
        shape = link.segment.shape
        return (
            link.segment.address, shape.slots, shape.slot_bytes, shape.request_bytes,
            shape.answer_offset, shape.answer_bytes, self._coding(link),
        )  # fmt: skip

    def _set_cost(self) -> None:
        self._cost = self.view.cost.copy()
        for shard, link in enumerate(self._table.links):
            if link is not None and self.is_late(link):
                self._cost[shard] = np.inf

    def _coding(self, link: ClientLink) -> RowCoding:
        """How rows travel over a link."""
        return RowCoding.BF16 if link.address.is_unix else self.view.rows_between_nodes
