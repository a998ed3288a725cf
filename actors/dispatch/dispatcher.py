"""Token-level expert dispatch: split a batch over the shards, send, collect, add up.

The partial sums of the shards are added in ascending shard order in fp32 and rounded to bf16 once,
so the result does not depend on who answered first. When a shard is lost, the rows it owed go to
other replicas; when there is none, the call waits for the next view of the mesh instead of failing.
"""

import contextlib
import logging
import time
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from actors.dispatch.backend import ExpertUnavailable, bf16_bits
from actors.dispatch.mesh_view import MeshView
from actors.dispatch.routing_table import RoutingTable, build_routing_table
from actors.dispatch.split import (
    ExpertsUnplaced,
    Ints,
    ShardBatch,
    add_rows,
    gather_rows,
    split_batch,
)
from actors.dispatch.subscription import ViewSource
from actors.wire.body import Floats, call_body, sums_of
from actors.wire.frame import FrameKind, Header, body_bytes
from actors.wire.handshake import HandshakeError
from actors.wire.link import ClientLink, LinkClosed, RemoteError, StreamLink
from actors.wire.node import node_id

log = logging.getLogger(__name__)

RETRY_DOWN_SHARD_S = 1.0
"""After this long a shard that was lost is tried again, even if the view did not change."""


@dataclass(slots=True, eq=False)
class _Part:
    """What one shard owes: rows of `batch` are rows of `Call.rows` through `tokens`."""

    batch: ShardBatch
    tokens: Ints
    link: ClientLink | None
    call_id: int


@dataclass(slots=True, eq=False)
class Call:
    """One MoE layer of one batch, on its way."""

    layer: int
    rows: npt.NDArray[np.uint16]
    parts: list[_Part] = field(default_factory=list)
    give_up_s: float | None = None
    """`time.monotonic()` after which lost rows are no longer sent again; None before a loss."""


class Dispatcher:
    """`ExpertBackend` that talks to the shards itself."""

    def __init__(self, views: ViewSource, secret: bytes = b"") -> None:
        self._views = views
        self._secret = secret
        self._view: MeshView | None = None
        self._table: RoutingTable | None = None
        self._links: dict[int, ClientLink] = {}
        self._down: dict[int, float] = {}
        self._call_id = 0

    # -- ExpertBackend

    def send(
        self, layer: int, rows: torch.Tensor, topk_weights: torch.Tensor, topk_ids: torch.Tensor
    ) -> Call:
        call = Call(layer, bf16_bits(rows))
        ids = topk_ids.to(torch.int32).contiguous().numpy()
        weights = topk_weights.to(torch.float32).contiguous().numpy()
        self._submit(call, ids, weights, None)
        return call

    def wait(self, call: Call) -> torch.Tensor:
        total = np.zeros(call.rows.shape, np.float32)
        refused: set[int] = set()
        while call.parts:
            parts, call.parts = call.parts, []
            lost = [part for part in parts if not self._collect(call, part, total, refused)]
            for part in lost:
                self._resend(call, part, frozenset(refused))
        return torch.from_numpy(total).to(torch.bfloat16)

    def close(self) -> None:
        for link in self._links.values():
            link.close()
        self._links.clear()

    # -- sending

    def _submit(
        self,
        call: Call,
        ids: Ints,
        weights: Floats,
        tokens: Ints | None,
        refused: frozenset[int] = frozenset(),
    ) -> None:
        """Split and send [T, K] choices; tokens: [T], row of `call.rows` for each, None for all.

        Waits for a later view while an expert has no live replica.
        """
        deadline_s = None
        while True:
            view = self._follow_view()
            try:
                batches = split_batch(self._routing(refused), call.layer, ids, weights)
                break
            except ExpertsUnplaced as unplaced:
                now_s = time.monotonic()
                deadline_s = deadline_s or now_s + view.expert_wait_s
                if now_s >= deadline_s:
                    raise ExpertUnavailable(
                        f"{unplaced}; waited {view.expert_wait_s:g} s for a replica"
                    ) from None
                log.warning("%s; waiting for a replica", unplaced)
                self._views.wait_change(view, min(RETRY_DOWN_SHARD_S, deadline_s - now_s))
                refused = frozenset()
        for batch in batches:
            source = batch.rows if tokens is None else tokens[batch.rows]
            call.parts.append(self._post(call, batch, source))

    def _post(self, call: Call, batch: ShardBatch, tokens: Ints) -> _Part:
        self._call_id += 1
        part = _Part(batch, tokens, None, self._call_id)
        try:
            link = self._link(batch.shard)
            link.post(self._fill(link, call, batch, tokens))
            part.link = link
        except (LinkClosed, HandshakeError, OSError) as error:
            self._lose(batch.shard, error)
        return part

    def _fill(self, link: ClientLink, call: Call, batch: ShardBatch, tokens: Ints) -> Header:
        count, hidden, assignments = len(tokens), call.rows.shape[1], len(batch.experts)
        length = body_bytes(FrameKind.CALL, count, hidden, assignments)
        header = Header(
            FrameKind.CALL,
            self._call_id,
            length,
            epoch=self._table.epoch if self._table else 0,
            layer=call.layer,
            rows=count,
            hidden=hidden,
            assignments=assignments,
        )
        body = call_body(header, link.body(length))
        gather_rows(call.rows, tokens, body.rows)
        body.row_index[:] = batch.row_index
        body.experts[:] = batch.experts
        body.weights[:] = batch.weights
        return header

    def _resend(self, call: Call, part: _Part, refused: frozenset[int]) -> None:
        """Give what a lost shard owed to other replicas, one assignment a row."""
        batch, now_s, wait_s = part.batch, time.monotonic(), self._views.current().expert_wait_s
        call.give_up_s = call.give_up_s or now_s + wait_s
        if now_s > call.give_up_s:
            raise ExpertUnavailable(
                f"layer {call.layer}: experts {np.unique(batch.experts)[:16].tolist()} were not "
                f"computed by any replica within {wait_s:g} s"
            )
        self._submit(
            call,
            batch.experts.reshape(-1, 1),
            batch.weights.reshape(-1, 1),
            part.tokens[batch.row_index],
            refused,
        )

    # -- collecting

    def _collect(self, call: Call, part: _Part, total: Floats, refused: set[int]) -> bool:
        """Add one shard's sums to `total`; False when it must be sent again."""
        if part.link is None or self._links.get(part.batch.shard) is not part.link:
            return False
        deadline_s = time.monotonic() + self._views.current().call_deadline_s
        try:
            header, body = part.link.wait(part.call_id, deadline_s)
        except LinkClosed as error:
            self._lose(part.batch.shard, error)
            return False
        except RemoteError as error:
            log.warning("shard %d refused layer %d: %s", part.batch.shard, call.layer, error)
            refused.add(part.batch.shard)
            return False
        if header.kind is not FrameKind.RESULT or (header.rows, header.hidden) != (
            len(part.tokens),
            call.rows.shape[1],
        ):
            self._lose(part.batch.shard, LinkClosed(f"answered {header}"))
            return False
        add_rows(total, part.tokens, sums_of(body, header.rows, header.hidden))
        return True

    # -- the mesh

    def _follow_view(self) -> MeshView:
        """Adopt a new view, and forgive shards that have been down for a while."""
        view = self._views.current()
        now_s = time.monotonic()
        if view is not self._view:
            self._adopt(view)
        elif any(retry_s <= now_s for retry_s in self._down.values()):
            self._down = {s: retry_s for s, retry_s in self._down.items() if retry_s > now_s}
            self._table = None
        return view

    def _adopt(self, view: MeshView) -> None:
        before = self._view.shards if self._view else ()
        for shard in list(self._links):
            if shard >= len(view.shards) or view.shards[shard] != before[shard]:
                self._links.pop(shard).close()
        self._view, self._table = view, None
        self._down.clear()

    def _routing(self, refused: frozenset[int]) -> RoutingTable:
        assert self._view is not None
        view = self._view
        if refused:
            down = frozenset(self._down) | refused
            return build_routing_table(view.epoch, view.speed, down)
        if self._table is None:
            self._table = build_routing_table(view.epoch, view.speed, frozenset(self._down))
        return self._table

    def _link(self, shard: int) -> ClientLink:
        link = self._links.get(shard)
        if link is None:
            assert self._view is not None
            address = self._view.shards[shard].address_from(node_id())
            link = self._links[shard] = StreamLink(address, self._secret)
        return link

    def _lose(self, shard: int, error: Exception) -> None:
        name = self._view.shards[shard].id if self._view else str(shard)
        log.warning("lost shard %s: %s", name, error)
        with contextlib.suppress(KeyError):
            self._links.pop(shard).close()
        self._down[shard] = time.monotonic() + RETRY_DOWN_SHARD_S
        self._table = None
