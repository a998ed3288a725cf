"""Hand whole batches to the router of this node: the engine's side of `router.mode: actor`.

The link belongs to the call: when a router is lost, every call that was on its way there is sent
again to the one that greets next. The router itself waits for lost shards, so it is given up only
after the time that it may need to say that there is no replica.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from actors.dispatch.backend import ExpertUnavailable, bf16_bits, bf16_tensor
from actors.dispatch.mesh_view import MeshView, Peer
from actors.dispatch.peer_links import PeerLinks
from actors.dispatch.view_source import ViewSource
from actors.wire.body import Floats, Ints, route_body, rows_of
from actors.wire.exchange import Posted, Room
from actors.wire.frame import FrameKind, Header, body_bytes
from actors.wire.link import LinkClosed, LinkTimeout, RemoteError
from actors.wire.node import node_id
from actors.wire.slots import GOOD, STATUS

log = logging.getLogger(__name__)

LOOK_AGAIN_S = 0.02
"""How often a call that no router can take looks for new links."""


@dataclass(slots=True, eq=False)
class RoutedCall:
    """One MoE layer of one batch, given to the router."""

    layer: int
    rows: npt.NDArray[np.uint16]
    topk_ids: Ints
    topk_weights: Floats
    sample: int
    posted: Posted | None = None
    posted_s: float = 0.0
    give_up_s: float | None = None
    """`time.monotonic()` after which it is not sent again; None before a router was missing."""


class RouterClient:
    """`ExpertBackend` through a router. Batches are sent again when the router is replaced."""

    def __init__(self, views: ViewSource, secret: bytes = b"") -> None:
        self._views = views
        self._view: MeshView | None = None
        self._links = PeerLinks(views, near_routers, secret)
        self._call_id = 0
        self._heard_s = 0.0

    def send(
        self,
        layer: int,
        rows: torch.Tensor,
        topk_weights: torch.Tensor,
        topk_ids: torch.Tensor,
        sample: int = 0,
    ) -> RoutedCall:
        call = RoutedCall(
            layer,
            bf16_bits(rows),
            topk_ids.to(torch.int32).contiguous().numpy(),
            topk_weights.to(torch.float32).contiguous().numpy(),
            sample,
        )
        self._follow()
        self._post(call)
        self._links.waiting.send_rest()
        return call

    def wait(self, call: RoutedCall) -> torch.Tensor:
        while True:
            posted = call.posted
            if posted is None or posted.link.closed:
                self._send_again(call)
            elif self._links.waiting.answered(posted.parts, self._deadline_s(call)):
                result = self._receive(call, posted)
                if result is not None:
                    return result
            else:
                self._follow()
                if time.monotonic() >= self._deadline_s(call):
                    self._links.lose(posted.link, LinkTimeout("the router does not answer"))

    def takes(self, device: torch.device) -> bool:
        return device.type == "cpu"

    def close(self) -> None:
        self._links.close()

    def _follow(self) -> None:
        view = self._views.current()
        if view is not self._view:
            if self._view is None:
                self._links.connector.wait_tried(view.expert_wait_s)
            self._view = view
            self._links.want(near_routers(view))
        self._links.refresh(time.monotonic())

    def _deadline_s(self, call: RoutedCall) -> float:
        """Twice the time for which the router waits for a shard and for a replica: for its first
        plan and for what it sends again."""
        view = self._views.current()
        since_s = max(call.posted_s, self._heard_s)
        return since_s + 2 * (view.call_deadline_s + view.expert_wait_s)

    def _send_again(self, call: RoutedCall) -> None:
        """Raises ExpertUnavailable: there was no router for too long."""
        self._follow()
        wait_s, now_s = self._views.current().expert_wait_s, time.monotonic()
        call.give_up_s = call.give_up_s or now_s + wait_s
        if now_s >= call.give_up_s:
            raise ExpertUnavailable(f"layer {call.layer}: no router answered within {wait_s:g} s")
        if not self._post(call):
            self._links.waiting.news([], now_s + LOOK_AGAIN_S)

    def _post(self, call: RoutedCall) -> bool:
        """Whether there is a router that the call was given to."""
        assert self._view is not None
        links = (self._links.get(router) for router in near_routers(self._view))
        link = next(filter(None, links), None)
        if link is None:
            return False
        tokens, hidden = call.rows.shape
        count = call.topk_ids.size
        self._call_id += 1
        length = body_bytes(FrameKind.ROUTE, tokens, hidden, count)
        header = Header(
            FrameKind.ROUTE, self._call_id, length, layer=call.layer, rows=tokens, hidden=hidden,
            assignments=count, sample=call.sample,
        )  # fmt: skip
        link = self._links.with_room(link, length, body_bytes(FrameKind.ROUTED, tokens, hidden))
        if link is None:
            return False
        try:
            room = Room(link, header)
            body = route_body(header, room.body)
            body.rows[:] = call.rows
            body.topk_ids[:] = call.topk_ids
            body.topk_weights[:] = call.topk_weights
            call.posted, call.posted_s = room.post(), time.monotonic()
        except LinkClosed as error:
            self._links.lose(link, error)
            return False
        self._links.bell.ring()
        return True

    def _receive(self, call: RoutedCall, posted: Posted) -> torch.Tensor | None:
        """The answer, which is there; None: it is none, and the router is lost."""
        self._heard_s = time.monotonic()
        try:
            header, body = posted.read()
            if posted.parts[0, STATUS] != GOOD:
                raise LinkClosed(f"answered {header}")
        except RemoteError as error:
            posted.free()
            raise ExpertUnavailable(f"router: {error}") from None
        except LinkClosed as error:
            self._links.lose(posted.link, error)
            return None
        # The slot is used again by the next call.
        result = bf16_tensor(rows_of(body, header.rows, header.hidden).copy())
        posted.free()
        return result


def near_routers(view: MeshView) -> Sequence[Peer]:
    """The routers on this node, or all of them where there is none."""
    here = [router for router in view.routers if router.node == node_id()]
    return here or view.routers
