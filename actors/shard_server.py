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

from actors.experts.spec import ExpertSpec
from actors.kernels.base import ExpertKernel, ExpertsMissing
from actors.wire.address import Address
from actors.wire.body import CallBody, call_body
from actors.wire.frame import FrameKind, Header, body_bytes
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
        self.tokens: npt.NDArray[np.int64] = np.zeros(
            (len(spec.layers), spec.num_experts), np.int64
        )
        """[L, E] assignments computed since the start: this shard's share of the expert load."""
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
        bodies = [call_body(request.header, request.body) for request in group]
        faults = [self._body_fault(body) for body in bodies]
        for request, fault in zip(group, faults, strict=True):
            if fault:
                self._frames.refuse(request, f"layer {layer}: {fault}")
        good = [i for i, fault in enumerate(faults) if not fault]
        if not good:
            return
        try:
            sums, compute_s = self._compute(layer, merge([bodies[i] for i in good]))
        except ExpertsMissing as missing:
            if len(good) == 1:
                self._frames.refuse(group[good[0]], str(missing))
            else:  # one of them asks for what is not here: serve each by itself
                for i in good:
                    self._serve_layer(layer, [group[i]])
            return
        first = 0
        for i in good:
            count = group[i].header.rows
            self._answer(group[i], sums[first : first + count], compute_s)
            first += count

    def _body_fault(self, body: CallBody) -> str:
        """The kernels index memory with these: nothing out of range may pass."""
        if not body.rows.shape[0] or not body.row_index.size:
            return "an empty call"
        if body.row_index.min() < 0 or body.row_index.max() >= body.rows.shape[0]:
            return f"row_index out of [0, {body.rows.shape[0]})"
        if body.experts.min() < 0 or body.experts.max() >= self._spec.num_experts:
            return f"expert out of [0, {self._spec.num_experts})"
        return ""

    def _compute(self, layer: int, body: CallBody) -> tuple[torch.Tensor, float]:
        start_s = time.perf_counter()
        sums = self._kernel.compute(
            layer,
            torch.from_numpy(body.rows.view(np.int16)).view(torch.bfloat16),
            torch.from_numpy(body.row_index),
            torch.from_numpy(body.experts),
            torch.from_numpy(body.weights),
        )
        compute_s = time.perf_counter() - start_s
        if self._stretch > 0:
            time.sleep(compute_s * self._stretch)
            compute_s *= 1.0 + self._stretch
        self.calls += 1
        self.busy_s += compute_s
        np.add.at(self.tokens[self._row_of_layer[layer]], body.experts, 1)
        return sums, compute_s

    def _answer(self, request: Request, sums: torch.Tensor, compute_s: float) -> None:
        rows, hidden = sums.shape
        length = body_bytes(FrameKind.RESULT, rows, hidden, 0)
        header = Header(
            FrameKind.RESULT,
            request.header.call_id,
            length,
            epoch=request.header.epoch,
            layer=request.header.layer,
            rows=rows,
            hidden=hidden,
            compute_us=int(compute_s * 1e6),
        )
        self._frames.answer(request, header, sums.numpy().data.cast("B"))


def merge(bodies: Sequence[CallBody]) -> CallBody:
    """One call that holds the rows of all, in order."""
    if len(bodies) == 1:
        return bodies[0]
    first_row = np.cumsum([0] + [body.rows.shape[0] for body in bodies[:-1]])
    return CallBody(
        np.concatenate([body.rows for body in bodies]),
        np.concatenate(
            [
                body.row_index + np.int32(first)
                for body, first in zip(bodies, first_row, strict=True)
            ]
        ),
        np.concatenate([body.experts for body in bodies]),
        np.concatenate([body.weights for body in bodies]),
    )
