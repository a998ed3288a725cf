"""Token-level expert dispatch: split a batch over the shards, send, collect, add up.

The partial sums of the shards are added in ascending shard order in fp32 and rounded to bf16 once,
so the result does not depend on who answered first. When a shard is lost, the rows it owed go to
other replicas; when there is none, the call waits for the next view of the mesh instead of failing.
"""

import logging
import time
from dataclasses import dataclass, field

import numpy as np
import torch

from actors.dispatch.backend import ExpertUnavailable, bf16_bits, bf16_tensor
from actors.dispatch.shard_links import RETRY_DOWN_SHARD_S, ShardLinks
from actors.dispatch.shared_calls import NO_SLOT, NOT_A_RESULT, SharedFlight
from actors.dispatch.split import AnyInts, ExpertsUnplaced, Split
from actors.dispatch.view_source import ViewSource
from actors.wire.body import Bits16, Floats, rows_of, sums_of
from actors.wire.frame import FrameKind, Header, RowCoding, body_bytes
from actors.wire.handshake import HandshakeError
from actors.wire.link import ClientLink, LinkClosed, RemoteError
from actors.wire.shared_link import SharedLink

log = logging.getLogger(__name__)


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
    rows: torch.Tensor
    """[T, H] bf16, contiguous."""
    scratch: _Scratch
    result: torch.Tensor | None = None
    flight: SharedFlight | None = None
    """What was posted to all shards together; when not None, `parts` is empty."""
    parts: list[_Part] = field(default_factory=list)
    refused: set[int] = field(default_factory=set)
    """Shards that answered that they cannot serve this call."""
    give_up_s: float | None = None
    """`time.monotonic()` after which lost rows are no longer sent again; None before a loss."""
    deadline_s: float = 0.0
    """`time.monotonic()` by which shards have to have answered, once they are waited for."""
    compute_us: int = 0
    """Time the slowest shard's kernel took, known after `wait`."""
    _bits: Bits16 | None = None

    def bits(self) -> Bits16:
        """The rows as numpy sees them."""
        if self._bits is None:
            self._bits = bf16_bits(self.rows)
        return self._bits


class Dispatcher:
    """`ExpertBackend` that talks to the shards itself."""

    def __init__(self, views: ViewSource, secret: bytes = b"") -> None:
        self._views = views
        self._links = ShardLinks(views, secret)
        self._follower = views.join()
        self._call_id = 0
        self._idle: list[_Scratch] = []

    # -- ExpertBackend

    def send(
        self, layer: int, rows: torch.Tensor, topk_weights: torch.Tensor, topk_ids: torch.Tensor
    ) -> Call:
        scratch = self._idle.pop() if self._idle else _Scratch()
        call = Call(layer, rows.contiguous(), scratch)
        if topk_weights.dtype is not torch.float32:
            topk_weights = topk_weights.float()
        ids, weights = topk_ids.contiguous().numpy(), topk_weights.contiguous().numpy()
        self._follower.calls += 1
        try:
            self._plan(call, scratch.split, ids, weights)
            self._post_together(call)
        except BaseException:
            self._follower.calls -= 1
            raise
        self._links.bell.ring()
        # Now, while the shards are at work.
        call.result = torch.empty(rows.shape, dtype=torch.bfloat16)
        return call

    def wait(self, call: Call) -> torch.Tensor:
        assert call.result is not None
        call.deadline_s = time.monotonic() + self._views.current().call_deadline_s
        try:
            if call.flight is None or not self._collect_together(call, call.result):
                self._collect_parts(call, call.result)
        finally:
            self._follower.calls -= 1
        self._idle.append(call.scratch)
        return call.result

    def close(self) -> None:
        self._views.leave(self._follower)
        self._links.close()

    # -- all shards at once

    def _post_together(self, call: Call) -> None:
        """Post every share; those that `SharedCalls` does not take become parts, and then all."""
        view, shared = self._links.view, self._links.shared()
        if not shared:
            self._post_parts(call, call.scratch.split)
            return
        first_call_id = self._call_id + 1
        self._call_id += len(view.shards)
        flight = shared.post(
            call.scratch.split, call.rows, call.layer, view.epoch.number, first_call_id
        )
        if flight.rings:
            self._links.bell.needed = True
        if flight.complete:
            call.flight = flight
        else:
            self._take_apart(call, flight)

    def _take_apart(self, call: Call, flight: SharedFlight) -> None:
        """Go on share by share: post what was not, and let the links look for what was."""
        split = call.scratch.split
        for shard, rows, assignments in split.shares():
            slot = int(flight.slots[shard])
            if slot == NO_SLOT:
                call.parts.append(self._post(call, split, shard, rows, assignments))
                continue
            call_id = flight.first_call_id + shard
            link = self._links.get(shard)
            if not isinstance(link, SharedLink) or not link.adopt(
                call_id, flight.channels[shard], slot
            ):
                link = None  # lost since then
            call.parts.append(_Part(shard, split, rows, link, call_id))

    def _collect_together(self, call: Call, result: torch.Tensor) -> bool:
        """Whether the flight's answers are in `result`; if not, its calls are parts now."""
        flight, call.flight = call.flight, None
        assert flight is not None
        shared = self._links.shared()
        if shared.wait(flight, call.deadline_s):
            compute_us = shared.collect(flight, call.scratch.split, result)
            if compute_us != NOT_A_RESULT:
                call.compute_us = compute_us
                return True
        self._take_apart(call, flight)
        return False

    # -- share by share

    def _collect_parts(self, call: Call, result: torch.Tensor) -> None:
        out = bf16_bits(result)
        total = call.scratch.total(*result.shape)
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

    # -- sending

    def _plan(self, call: Call, split: Split, ids: AnyInts, weights: Floats) -> None:
        """Split [T, K] choices; waits for a later view while an expert has no live replica."""
        deadline_s = None
        while True:
            view = self._links.follow()
            self._follower.version = view.version
            try:
                usable = self._links.usable(call.refused)
                split.plan(view.table, call.layer, usable, view.cost, ids, weights)
                return
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

    def _post_parts(self, call: Call, split: Split) -> None:
        for shard, rows, assignments in split.shares():
            call.parts.append(self._post(call, split, shard, rows, assignments))

    def _post(self, call: Call, split: Split, shard: int, rows: int, assignments: int) -> _Part:
        self._call_id += 1
        hidden = call.rows.shape[1]
        part = _Part(shard, split, rows, None, self._call_id)
        try:
            link = self._links.open(shard)
            coding = self._links.coding(shard)
            header = Header(
                FrameKind.CALL,
                self._call_id,
                body_bytes(FrameKind.CALL, rows, hidden, assignments, coding),
                epoch=self._links.view.epoch.number,
                layer=call.layer,
                rows=rows,
                hidden=hidden,
                assignments=assignments,
                coding=coding,
            )
            answer_bytes = body_bytes(FrameKind.RESULT, rows, hidden, coding=coding)
            body = np.frombuffer(link.body(header.body_bytes, answer_bytes), np.uint8)
            split.fill(shard, call.bits(), body, coding is RowCoding.FP8)
            link.post(header)
            part.link = link
            self._links.posted_on(link)
        except (LinkClosed, HandshakeError, OSError) as error:
            self._links.lose(shard, error)
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
        split = Split()
        self._plan(call, split, ids, weights)
        split.translate_rows(batch.rows[batch.row_index])
        call.deadline_s = time.monotonic() + self._views.current().call_deadline_s
        self._post_parts(call, split)
        self._links.bell.ring()

    # -- collecting

    def _collect(self, call: Call, part: _Part) -> Floats | None:
        """One shard's sums [R, H], until the link is used again; None: send the part again."""
        shard, link, hidden = part.shard, part.link, call.rows.shape[1]
        if link is None or self._links.get(shard) is not link:
            return None
        try:
            header, body = link.wait(part.call_id, call.deadline_s)
        except LinkClosed as error:
            self._links.lose(shard, error)
            return None
        except RemoteError as error:
            log.warning("shard %d refused layer %d: %s", shard, call.layer, error)
            call.refused.add(shard)
            return None
        if header.kind is not FrameKind.RESULT or (header.rows, header.hidden) != (
            part.rows,
            hidden,
        ):
            self._links.lose(shard, LinkClosed(f"answered {header}"))
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
