"""Serve expert calls on the data links: merge what waits for the same layer, compute, answer.

One thread reads, computes and writes: with the kernel running for most of the time, a second thread
would only add hand-overs. No Ray here; `shard.py` puts this into an actor.

When the kernel fails, nobody but the caller of the failing call notices: merged calls are computed
again one by one, and a call that fails by itself is answered with an ERROR, so that its sender asks
another replica. One that ran out of memory is first tried in smaller pieces. After such an ERROR a
self-test decides about the shard: one row of zeros through one expert that it holds. A device that
does not compute even that serves nobody, and `run` ends.
"""

import logging
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from actors.answers import in_place, result_header, write_sums
from actors.experts.spec import ExpertSpec
from actors.kernels.base import ExpertKernel, ExpertsMissing
from actors.kernels.scratch import LEAST_ASSIGNMENTS, is_out_of_memory
from actors.shard.merging import MergedCalls, count_experts, fitting, row_pieces
from actors.wire.address import Address
from actors.wire.body import Floats, call_body
from actors.wire.frame import MAX_ASSIGNMENTS, Fault, FrameKind, Header, RowCoding
from actors.wire.security import HANDSHAKE_ONLY, TcpSecurity
from actors.wire.server import FrameServer, Request

if TYPE_CHECKING:
    from actors.tracing.step_spans import StepSpans
    from actors.wire.device_memory import DeviceMemory

log = logging.getLogger(__name__)


class DeviceUnusable(RuntimeError):
    """The device computes nothing any more."""


class ShardServer:
    """Answers CALL frames with RESULT frames.

    most_assignments: rows and assignments of one kernel call (`actors.kernels.scratch`); may change
    while it serves. emulated_speed: 1.0 computes as fast as the hardware; below that every kernel
    call is stretched by waiting, so one machine can stand in for a mesh of unlike devices.
    spans: of calls in sampled steps. device: the kernel's, if engines on this node may share memory
    of theirs with it.
    """

    def __init__(
        self,
        spec: ExpertSpec,
        kernel: ExpertKernel,
        addresses: Sequence[Address],
        secret: bytes,
        emulated_speed: float = 1.0,
        most_assignments: int = MAX_ASSIGNMENTS,
        security: TcpSecurity = HANDSHAKE_ONLY,
        spans: "StepSpans | None" = None,
        device: "DeviceMemory | None" = None,
    ) -> None:
        self._spec, self._spans = spec, spans
        self._kernel = kernel
        self._stretch = 1.0 / emulated_speed - 1.0
        self.most_assignments = most_assignments
        self._frames = FrameServer(addresses, secret, self._handle, security, device)
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
        self.failed_calls = 0
        self.busy_s = 0.0

    def run(self) -> None:
        """Serve until `stop`; blocks its thread.

        Raises:
            DeviceUnusable.
        """
        torch.set_grad_enabled(False)
        self._frames.run()

    def stop(self) -> None:
        self._frames.stop()

    def _handle(self, requests: Sequence[Request]) -> None:
        groups: dict[tuple[int, bool], list[Request]] = defaultdict(list)
        for request in requests:
            fault = self._fault(request.header) or area_fault(request)
            if fault:
                self._frames.refuse(request, fault)
            else:
                there = request.header.coding is RowCoding.DEVICE
                groups[request.header.layer, there].append(request)
        for (layer, _), group in groups.items():
            for batch in fitting(group, self.most_assignments):
                self._serve(layer, batch)

    def _fault(self, header: Header) -> str:
        if header.kind is not FrameKind.CALL:
            return f"a shard serves CALL frames, not {header.kind.name}"
        if header.layer not in self._row_of_layer:
            return f"layer {header.layer} has no routed experts in {self._spec.architecture}"
        if header.hidden != self._spec.hidden_size:
            return f"rows of {header.hidden} values, the model has {self._spec.hidden_size}"
        return ""

    def _serve(self, layer: int, group: list[Request]) -> None:
        """Compute the calls of `group` together."""
        good = self._merge(layer, group)
        if not good:
            return
        try:
            answers = self._compute(layer, good)
        except Exception as error:  # whatever a kernel raises concerns its call, not the server
            if not isinstance(error, ExpertsMissing):
                log.warning("layer %d: the kernel failed", layer, exc_info=True)
            # Without its frames, which would hold the kernel's memory while it is tried again.
            failure = error.with_traceback(None)
        else:
            self._answer(layer, good, answers)
            return
        if len(good) == 1:
            self._recover(layer, good[0], failure)
        else:  # one of them is at fault: serve each by itself
            for request in good:
                self._serve(layer, [request])

    def _merge(self, layer: int, group: list[Request]) -> list[Request]:
        """Put what can be computed into the batch; returns whose it is."""
        self._batch.clear()
        good = []
        for request in self._frames.present(group):
            fault = self._batch.add(call_body(request.header, request.body))
            if fault:
                self._frames.refuse(request, f"layer {layer}: {fault}")
            else:
                good.append(request)
        return good

    def _answer(self, layer: int, group: list[Request], answers: list[Header]) -> None:
        for request, answer in zip(group, answers, strict=True):
            self._frames.answer(request, answer)
            if request.header.sample:
                self._trace(request.header, answer.compute_us, len(group))
        # Counted while the answers are on their way.
        self.calls += 1
        self.busy_s += answers[0].compute_us * 1e-6
        count_experts(self.tokens[self._row_of_layer[layer]], self._batch.experts)

    def _trace(self, call: Header, compute_us: int, merged: int) -> None:
        if self._spans is not None:
            counts = {
                "expertmesh.rows": call.rows,
                "expertmesh.assignments": call.assignments,
                "expertmesh.merged_calls": merged,
            }
            self._spans.compute(call.sample, call.layer, time.time_ns(), compute_us, counts)

    # -- computing

    def _compute(self, layer: int, group: list[Request]) -> list[Header]:
        """Put the sums where the answers go out from; returns the answers' headers."""
        answers = [result_header(request.header) for request in group]
        if group[0].header.coding is RowCoding.DEVICE:
            compute_s = self._compute_there(layer, group)
            return [answer._replace(compute_us=int(compute_s * 1e6)) for answer in answers]
        rooms = [
            self._frames.room(request, answer.body_bytes)
            for request, answer in zip(group, answers, strict=True)
        ]
        # One call's fp32 sums are written in place; others are handed out from one array.
        out = in_place(answers[0], rooms[0]) if len(group) == 1 else None
        hand_out = out is None
        if out is None:
            out = self._sums()
        start_s = time.perf_counter()
        self._run_kernel(layer, self._batch.rows, torch.from_numpy(out))
        compute_s = time.perf_counter() - start_s
        if hand_out:
            first = 0
            for answer, room in zip(answers, rooms, strict=True):
                if room is not None:
                    write_sums(out[first : first + answer.rows], answer, room)
                first += answer.rows
        compute_s = self._stretched(compute_s)
        return [answer._replace(compute_us=int(compute_s * 1e6)) for answer in answers]

    def _stretched(self, compute_s: float) -> float:
        """Wait for as long as a slower device would go on; returns the time of both."""
        if self._stretch > 0:
            time.sleep(compute_s * self._stretch)
        return compute_s * (1.0 + self._stretch)

    def _compute_there(self, layer: int, group: list[Request]) -> float:
        """Calls whose rows and sums lie in areas that are shared with their clients; returns when
        the sums are there. Seconds of the kernel."""
        start_s = time.perf_counter()
        rows, sums = [], []
        for request in group:
            header, area = request.header, request.connection.area
            assert area is not None, "see `area_fault`"
            area.await_rows(request.slot)
            rows.append(area.rows(request.slot, header.rows, header.hidden))
            sums.append(area.sums(request.slot, header.rows, header.hidden))
        if len(group) == 1:
            self._run_kernel(layer, rows[0], sums[0])
        else:
            merged = torch.cat(rows)
            out = torch.empty(merged.shape, dtype=torch.float32, device=merged.device)
            self._run_kernel(layer, merged, out)
            for place, part in zip(sums, torch.split(out, list(map(len, rows))), strict=True):
                place.copy_(part)
        assert area is not None
        area.sums_written()
        return self._stretched(time.perf_counter() - start_s)

    def _run_kernel(self, layer: int, rows: torch.Tensor, out: torch.Tensor) -> None:
        """The batch's sums [R, H] of `rows` into `out`, in pieces of whole rows if it is too
        large."""
        batch = self._batch
        index, experts, weights = batch.row_index, batch.experts, batch.weights
        if max(batch.num_rows, batch.assignments) <= self.most_assignments:
            self._call_kernel(layer, rows, index, experts, weights, out)
            return
        for first, end in row_pieces(index, batch.num_rows, self.most_assignments):
            inside = np.flatnonzero((index >= first) & (index < end))
            if len(inside):
                self._call_kernel(
                    layer,
                    rows[first:end],
                    index[inside] - np.int32(first),
                    experts[inside],
                    weights[inside],
                    out[first:end],
                )
            else:
                out[first:end] = 0.0

    def _call_kernel(
        self,
        layer: int,
        rows: torch.Tensor,
        row_index: npt.NDArray[np.int32],
        experts: npt.NDArray[np.int32],
        weights: Floats,
        out: torch.Tensor,
    ) -> None:
        self._kernel.compute(
            layer,
            rows,
            torch.from_numpy(row_index),
            torch.from_numpy(experts),
            torch.from_numpy(weights),
            out,
        )

    def _sums(self) -> Floats:
        rows = self._batch.num_rows
        if rows > len(self._merged_sums):
            self._merged_sums = np.empty((2 * rows, self._spec.hidden_size), np.float32)
        return self._merged_sums[:rows]

    # -- failures

    def _recover(self, layer: int, request: Request, failure: Exception) -> None:
        """Answer a call whose computation failed, or try it again in smaller pieces.

        Raises:
            DeviceUnusable.
        """
        if isinstance(failure, ExpertsMissing):
            self._frames.refuse(request, str(failure))
            return
        size = min(self.most_assignments, max(request.header.rows, request.header.assignments))
        if is_out_of_memory(failure) and size > LEAST_ASSIGNMENTS:
            self.most_assignments = max(LEAST_ASSIGNMENTS, size // 2)
            log.warning("at most %d assignments a kernel call from now on", self.most_assignments)
            self._serve(layer, [request])
            return
        self.failed_calls += 1
        reason = f"layer {layer}: the kernel failed: {failure or type(failure).__name__}"
        problem = self._self_test(layer, int(self._batch.experts[0]))
        if problem is None:
            self._frames.refuse(request, reason, Fault.FAILED)
            return
        self._frames.refuse(request, f"{reason}; the device is unusable", Fault.UNFIT)
        raise DeviceUnusable(f"{reason}; then one row of zeros failed: {problem}")

    def _self_test(self, layer: int, expert: int) -> Exception | None:
        """Send one row of zeros through one expert; returns what was raised."""
        rows = torch.zeros((1, self._spec.hidden_size), dtype=torch.bfloat16)
        out = torch.empty(rows.shape, dtype=torch.float32)
        one = np.ones(1, np.float32)
        try:
            self._call_kernel(
                layer, rows, np.zeros(1, np.int32), np.full(1, expert, np.int32), one, out
            )
        except ExpertsMissing:
            return None  # another plan took it away meanwhile
        except Exception as error:
            return error
        return None


def area_fault(request: Request) -> str:
    """Why a call's rows cannot be where it says; "" if they can."""
    header, area = request.header, request.connection.area
    if header.coding is not RowCoding.DEVICE:
        return ""
    if area is None:
        return "rows in device memory that was not shared"
    if request.slot >= area.shape.slots or not area.shape.has_room(header.rows, header.hidden):
        return f"{header.rows} rows in a slot of {area.shape.rows_bytes} bytes"
    return ""
