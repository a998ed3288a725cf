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

from actors.dispatch.backend import ExpertUnavailable, bf16_bits, bf16_tensor
from actors.dispatch.mesh_view import MeshView
from actors.dispatch.routing_table import RoutingTable, build_routing_table
from actors.dispatch.split import AnyInts, ExpertsUnplaced, Ints, Split
from actors.dispatch.subscription import ViewSource
from actors.wire.bell import Bell
from actors.wire.body import Floats, rows_of, sums_of
from actors.wire.frame import FrameKind, Header, RowCoding, body_bytes
from actors.wire.handshake import HandshakeError
from actors.wire.link import ClientLink, LinkClosed, RemoteError, open_link
from actors.wire.node import node_id

log = logging.getLogger(__name__)

RETRY_DOWN_SHARD_S = 1.0
"""After this long a shard that was lost is tried again, even if the view did not change."""


@dataclass(slots=True, eq=False)
class _Part:
    """What one shard owes: its rows and assignments in `split`."""

    shard: int
    split: Split
    rows: int
    link: ClientLink | None
    call_id: int


class _Scratch:
    """Arrays of one call, used again by later ones."""

    def __init__(self) -> None:
        self.split = Split()
        self._total = np.empty(0, np.float32)

    def total(self, tokens: int, hidden: int) -> Floats:
        """fp32 [T, H], with anything in it."""
        if self._total.size < tokens * hidden:
            self._total = np.empty(tokens * hidden, np.float32)
        return self._total[: tokens * hidden].reshape(tokens, hidden)


@dataclass(slots=True, eq=False)
class Call:
    """One MoE layer of one batch, on its way."""

    layer: int
    rows: npt.NDArray[np.uint16]
    scratch: _Scratch
    parts: list[_Part] = field(default_factory=list)
    refused: set[int] = field(default_factory=set)
    """Shards that answered that they cannot serve this call."""
    give_up_s: float | None = None
    """`time.monotonic()` after which lost rows are no longer sent again; None before a loss."""
    compute_us: int = 0
    """Time the slowest shard's kernel took, known after `wait`."""


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
        self._bell = Bell()
        self._idle: list[_Scratch] = []

    # -- ExpertBackend

    def send(
        self, layer: int, rows: torch.Tensor, topk_weights: torch.Tensor, topk_ids: torch.Tensor
    ) -> Call:
        call = Call(layer, bf16_bits(rows), self._idle.pop() if self._idle else _Scratch())
        ids = topk_ids.contiguous().numpy()
        weights = topk_weights.to(torch.float32).contiguous().numpy()
        self._submit(call, call.scratch.split, ids, weights, None)
        return call

    def wait(self, call: Call) -> torch.Tensor:
        result = torch.empty(call.rows.shape, dtype=torch.bfloat16)
        out = bf16_bits(result)
        total = call.scratch.total(*call.rows.shape)
        begin = True
        try:
            while call.parts:
                lost = []
                while call.parts:
                    part = call.parts.pop(0)
                    sums = self._collect(call, part)
                    if sums is None:
                        lost.append(part)
                        continue
                    end = not call.parts and not lost
                    part.split.combine(part.shard, sums, total, out, begin, end)
                    begin = False
                for part in lost:
                    self._resend(call, part)
        except BaseException:
            self._abandon(call)
            raise
        if begin:  # nothing but padding
            result.zero_()
        self._idle.append(call.scratch)
        return result

    def close(self) -> None:
        for link in self._links.values():
            link.close()
        self._links.clear()
        self._bell.close()

    # -- sending

    def _submit(
        self, call: Call, split: Split, ids: AnyInts, weights: Floats, tokens: Ints | None
    ) -> None:
        """Split and send [T, K] choices; tokens: [T], row of `call.rows` for each, None for all.

        Waits for a later view while an expert has no live replica.
        """
        deadline_s = None
        while True:
            view = self._follow_view()
            try:
                shares = split.plan(self._routing(call.refused), call.layer, ids, weights)
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
                call.refused.clear()
        if tokens is not None:
            split.translate_rows(tokens)
        for shard, rows, assignments in shares:
            call.parts.append(self._post(call, split, shard, rows, assignments))
        self._bell.ring()

    def _post(self, call: Call, split: Split, shard: int, rows: int, assignments: int) -> _Part:
        self._call_id += 1
        hidden = call.rows.shape[1]
        part = _Part(shard, split, rows, None, self._call_id)
        try:
            link = self._link(shard)
            coding = self._coding(shard)
            header = Header(
                FrameKind.CALL,
                self._call_id,
                body_bytes(FrameKind.CALL, rows, hidden, assignments, coding),
                epoch=self._table.epoch if self._table else 0,
                layer=call.layer,
                rows=rows,
                hidden=hidden,
                assignments=assignments,
                coding=coding,
            )
            answer_bytes = body_bytes(FrameKind.RESULT, rows, hidden, coding=coding)
            body = np.frombuffer(link.body(header.body_bytes, answer_bytes), np.uint8)
            split.fill(shard, call.rows, body, coding is RowCoding.FP8)
            link.post(header)
            part.link = link
        except (LinkClosed, HandshakeError, OSError) as error:
            self._lose(shard, error)
        return part

    def _resend(self, call: Call, part: _Part) -> None:
        """Give what a lost shard owed to other replicas, one assignment a row."""
        batch = part.split.batch(part.shard)
        now_s, wait_s = time.monotonic(), self._views.current().expert_wait_s
        call.give_up_s = call.give_up_s or now_s + wait_s
        if now_s > call.give_up_s:
            raise ExpertUnavailable(
                f"layer {call.layer}: experts {np.unique(batch.experts)[:16].tolist()} were not "
                f"computed by any replica within {wait_s:g} s"
            )
        ids, weights = batch.experts.reshape(-1, 1), batch.weights.reshape(-1, 1)
        self._submit(call, Split(), ids, weights, batch.rows[batch.row_index])

    # -- collecting

    def _collect(self, call: Call, part: _Part) -> Floats | None:
        """One shard's sums [R, H], until the link is used again; None: send the part again."""
        shard, link, hidden = part.shard, part.link, call.rows.shape[1]
        if link is None or self._links.get(shard) is not link:
            return None
        deadline_s = time.monotonic() + self._views.current().call_deadline_s
        try:
            header, body = link.wait(part.call_id, deadline_s)
        except LinkClosed as error:
            self._lose(shard, error)
            return None
        except RemoteError as error:
            log.warning("shard %d refused layer %d: %s", shard, call.layer, error)
            call.refused.add(shard)
            return None
        if header.kind is not FrameKind.RESULT or (header.rows, header.hidden) != (
            part.rows,
            hidden,
        ):
            self._lose(shard, LinkClosed(f"answered {header}"))
            return None
        call.compute_us = max(call.compute_us, header.compute_us)
        if header.coding is RowCoding.BF16:
            return sums_of(body, part.rows, hidden)
        return bf16_tensor(rows_of(body, part.rows, hidden)).float().numpy()

    def _abandon(self, call: Call) -> None:
        """Nobody will collect what is still on its way."""
        for part in call.parts:
            if part.link is not None:
                part.link.forget(part.call_id)
        call.parts.clear()

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

    def _routing(self, refused: set[int]) -> RoutingTable:
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
            link = self._links[shard] = open_link(address, self._secret, self._bell)
        return link

    def _coding(self, shard: int) -> RowCoding:
        assert self._view is not None
        on_this_node = self._view.shards[shard].node == node_id()
        return RowCoding.BF16 if on_this_node else self._view.rows_between_nodes

    def _lose(self, shard: int, error: Exception) -> None:
        name = self._view.shards[shard].id if self._view else str(shard)
        log.warning("lost shard %s: %s", name, error)
        with contextlib.suppress(KeyError):
            self._links.pop(shard).close()
        self._down[shard] = time.monotonic() + RETRY_DOWN_SHARD_S
        self._table = None
