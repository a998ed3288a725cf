"""Serve expert calls on the data links: merge what waits for the same layer, compute, answer.

One thread reads, computes and writes: with the kernel running for most of the time, a second thread
would only add hand-overs. No Ray here; `shard.py` puts this into an actor.
"""

import logging
import time
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from actors.dispatch.backend import bf16_tensor
from actors.experts.spec import ExpertSpec
from actors.kernels.base import ExpertKernel, ExpertsMissing
from actors.merging import MergedCalls, count_experts
from actors.wire.address import Address
from actors.wire.body import Floats, call_body, rows_of, sums_of
from actors.wire.frame import FrameKind, Header, RowCoding, body_bytes
from actors.wire.server import FrameServer, Request

log = logging.getLogger(__name__)


class ShardServer:
    """Answers CALL frames with RESULT frames.

    emulated_speed: 1.0 computes as fast as the hardware; below that every kernel call is stretched
    by waiting, so one machine can stand in for a mesh of unlike devices.
    """

    def __init__(
        self,
        spec: ExpertSpec,
        kernel: ExpertKernel,
        addresses: Sequence[Address],
        secret: bytes,
        emulated_speed: float = 1.0,
    ) -> None:
        self._spec = spec
        self._kernel = kernel
        self._stretch = 1.0 / emulated_speed - 1.0
        self._frames = FrameServer(addresses, secret, self._handle)
        self._row_of_layer = {layer: row for row, layer in enumerate(spec.layers)}
        self.addresses = self._frames.addresses
        self.incarnation = self._frames.incarnation
        self.tokens: npt.NDArray[np.int64] = np.zeros(
            (len(spec.layers), spec.num_experts), np.int64
        )
        """[L, E] assignments computed since the start: this shard's share of the expert load."""
        self._batch = MergedCalls(spec.hidden_size, spec.num_experts)
        self._merged_sums: Floats = np.empty((0, spec.hidden_size), np.float32)
        self.calls = 0
        self.busy_s = 0.0

    def run(self) -> None:
        """Serve until `stop`; blocks its thread."""
        torch.set_grad_enabled(False)
        self._frames.run()

    def stop(self) -> None:
        self._frames.stop()

    def _handle(self, requests: Sequence[Request]) -> None:
        by_layer: dict[int, list[Request]] = defaultdict(list)
        for request in requests:
            fault = self._fault(request.header)
            if fault:
                self._frames.refuse(request, fault)
            else:
                by_layer[request.header.layer].append(request)
        for layer, group in by_layer.items():
            self._serve_layer(layer, group)

    def _fault(self, header: Header) -> str:
        if header.kind is not FrameKind.CALL:
            return f"a shard serves CALL frames, not {header.kind.name}"
        if header.layer not in self._row_of_layer:
            return f"layer {header.layer} has no routed experts in {self._spec.architecture}"
        if header.hidden != self._spec.hidden_size:
            return f"rows of {header.hidden} values, the model has {self._spec.hidden_size}"
        return ""

    def _serve_layer(self, layer: int, group: list[Request]) -> None:
        batch = self._batch
        batch.clear()
        good = []
        for request in self._frames.present(group):
            fault = batch.add(call_body(request.header, request.body))
            if fault:
                self._frames.refuse(request, f"layer {layer}: {fault}")
            else:
                good.append(request)
        if not good:
            return
        try:
            answers = self._compute(layer, good)
        except ExpertsMissing as missing:
            if len(good) == 1:
                self._frames.refuse(good[0], str(missing))
            else:  # one of them asks for what is not here: serve each by itself
                for request in good:
                    self._serve_layer(layer, [request])
            return
        for request, answer in zip(good, answers, strict=True):
            self._frames.answer(request, answer)
        # The books are kept while the answers are on their way.
        self.calls += 1
        self.busy_s += answers[0].compute_us * 1e-6
        count_experts(self.tokens[self._row_of_layer[layer]], batch.experts)

    def _compute(self, layer: int, group: list[Request]) -> list[Header]:
        """Put the sums where the answers go out from; returns the answers' headers."""
        answers = [result_header(request.header) for request in group]
        rooms = [
            self._frames.room(request, answer.body_bytes)
            for request, answer in zip(group, answers, strict=True)
        ]
        # One call's fp32 sums are written in place; others are handed out from one array.
        out = in_place(answers[0], rooms[0]) if len(group) == 1 else None
        hand_out = out is None
        if out is None:
            out = self._sums()
        batch, rows = self._batch, self._batch.rows
        start_s = time.perf_counter()
        self._kernel.compute(
            layer,
            rows,
            batch.row_index,
            torch.from_numpy(batch.experts),
            batch.weights,
            torch.from_numpy(out),
        )
        compute_s = time.perf_counter() - start_s
        if hand_out:
            first = 0
            for answer, room in zip(answers, rooms, strict=True):
                if room is not None:
                    write_sums(out[first : first + answer.rows], answer, room)
                first += answer.rows
        if self._stretch > 0:
            time.sleep(compute_s * self._stretch)
            compute_s *= 1.0 + self._stretch
        return [answer._replace(compute_us=int(compute_s * 1e6)) for answer in answers]

    def _sums(self) -> Floats:
        rows = self._batch.num_rows
        if rows > len(self._merged_sums):
            self._merged_sums = np.empty((2 * rows, self._spec.hidden_size), np.float32)
        return self._merged_sums[:rows]


def in_place(answer: Header, room: memoryview | None) -> Floats | None:
    """The answer's body as sums fp32 [R, H], if that is what it holds; room: None if it is gone."""
    if room is None or answer.coding is not RowCoding.BF16:
        return None
    return sums_of(room, answer.rows, answer.hidden)


def write_sums(sums: Floats, answer: Header, room: memoryview) -> None:
    """Copy sums [R, H] into the body of an answer, rounding where it asks for that."""
    if answer.coding is RowCoding.BF16:
        sums_of(room, answer.rows, answer.hidden)[:] = sums
    else:
        rounded = bf16_tensor(rows_of(room, answer.rows, answer.hidden))
        rounded.copy_(torch.from_numpy(sums))


def result_header(call: Header) -> Header:
    """The RESULT that answers `call`."""
    return Header(
        FrameKind.RESULT,
        call.call_id,
        body_bytes(FrameKind.RESULT, call.rows, call.hidden, coding=call.coding),
        epoch=call.epoch,
        layer=call.layer,
        rows=call.rows,
        hidden=call.hidden,
        coding=call.coding,
    )
