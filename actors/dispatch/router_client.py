"""Hand whole batches to the router of this node: the engine's side of `router.mode: actor`."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch

from actors.dispatch.backend import ExpertUnavailable, bf16_bits, bf16_tensor
from actors.dispatch.mesh_view import MeshView, Peer
from actors.dispatch.view_source import ViewSource
from actors.wire.bell import Bell
from actors.wire.body import Floats, Ints, route_body, rows_of
from actors.wire.frame import FrameKind, Header, body_bytes
from actors.wire.handshake import HandshakeError
from actors.wire.link import ClientLink, LinkClosed, RemoteError, open_link
from actors.wire.node import node_id

log = logging.getLogger(__name__)

T = TypeVar("T")

RETRY_PAUSE_S = 0.5


@dataclass(frozen=True, slots=True, eq=False)
class RoutedCall:
    """One MoE layer of one batch, given to the router."""

    call_id: int
    layer: int
    rows: npt.NDArray[np.uint16]
    topk_ids: Ints
    topk_weights: Floats


class RouterClient:
    """`ExpertBackend` through a router. Batches are sent again when the router is replaced."""

    def __init__(self, views: ViewSource, secret: bytes = b"") -> None:
        self._views = views
        self._secret = secret
        self._link: ClientLink | None = None
        self._router: Peer | None = None
        self._call_id = 0
        self._bell = Bell()

    def send(
        self, layer: int, rows: torch.Tensor, topk_weights: torch.Tensor, topk_ids: torch.Tensor
    ) -> RoutedCall:
        self._call_id += 1
        call = RoutedCall(
            self._call_id,
            layer,
            bf16_bits(rows),
            topk_ids.to(torch.int32).contiguous().numpy(),
            topk_weights.to(torch.float32).contiguous().numpy(),
        )
        self._try(partial(self._post, call))
        return call

    def wait(self, call: RoutedCall) -> torch.Tensor:
        view = self._views.current()
        give_up_s = time.monotonic() + view.expert_wait_s
        while True:
            result = self._try(partial(self._receive, call, view))
            if result is not None:
                return result
            if time.monotonic() > give_up_s:
                raise ExpertUnavailable(
                    f"layer {call.layer}: no router answered within {view.expert_wait_s:g} s"
                )
            self._views.wait_change(view, RETRY_PAUSE_S)
            view = self._views.current()
            self._try(partial(self._post, call))

    def close(self) -> None:
        self._disconnect()
        self._bell.close()

    def _disconnect(self) -> None:
        if self._link is not None:
            self._link.close()
            self._link = None

    def _try(self, action: Callable[[], T]) -> T | None:
        try:
            return action()
        except RemoteError as error:
            raise ExpertUnavailable(f"router: {error}") from None
        except (LinkClosed, HandshakeError, OSError) as error:
            log.warning("lost router %s: %s", self._router.id if self._router else "?", error)
            self._disconnect()
            return None

    def _post(self, call: RoutedCall) -> None:
        tokens, hidden = call.rows.shape
        count = call.topk_ids.size
        length = body_bytes(FrameKind.ROUTE, tokens, hidden, count)
        header = Header(
            FrameKind.ROUTE,
            call.call_id,
            length,
            layer=call.layer,
            rows=tokens,
            hidden=hidden,
            assignments=count,
        )
        link = self._connected()
        answer_length = body_bytes(FrameKind.ROUTED, tokens, hidden)
        body = route_body(header, link.body(length, answer_length))
        body.rows[:] = call.rows
        body.topk_ids[:] = call.topk_ids
        body.topk_weights[:] = call.topk_weights
        link.post(header)
        self._bell.ring()

    def _receive(self, call: RoutedCall, view: MeshView) -> torch.Tensor:
        if self._link is None:
            raise LinkClosed("not connected")
        # The router itself waits for lost shards, so it is given the time for that.
        deadline_s = time.monotonic() + view.call_deadline_s + view.expert_wait_s
        header, body = self._link.wait(call.call_id, deadline_s)
        if header.kind is not FrameKind.ROUTED or header.rows != len(call.rows):
            raise LinkClosed(f"answered {header}")
        # The link's buffer is used again by the next answer.
        return bf16_tensor(rows_of(body, header.rows, header.hidden).copy())

    def _connected(self) -> ClientLink:
        view = self._views.current()
        if self._link is not None and self._router in view.routers:
            return self._link
        self._disconnect()
        routers = sorted(view.routers, key=lambda peer: peer.node != node_id())
        if not routers:
            raise LinkClosed("the mesh has no router")
        self._router = routers[0]
        self._link = open_link(self._router.address_from(node_id()), self._secret, self._bell)
        return self._link
