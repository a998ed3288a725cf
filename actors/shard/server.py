"""Serve expert calls on the data links: merge what waits for the same layer, compute, answer.

One thread reads, computes and writes: with the kernel running for most of the time, a second thread
would only add hand-overs. No Ray here; `shard.py` puts this into an actor.

When the kernel fails, nobody but the caller of the failing call notices: merged calls are computed
again one by one, and a call that fails by itself is answered with an ERROR, so that its sender asks
another replica. One that ran out of memory is first tried in smaller pieces. After such an ERROR a
self-test decides about the shard: one row of zeros through one expert that it holds. A device that
does not compute even that serves nobody, and `run` ends.

On a device that copies beside computing the rows of the next batch go there while one is computed:
it is started before that one is finished. A batch that cannot be started, or does not finish, is
computed again by itself, where failures are told apart as ever.
"""

import logging
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from actors.answers import result_header
from actors.experts.spec import ExpertSpec
from actors.kernels.base import ExpertKernel, ExpertsMissing, OverlappingKernel
from actors.kernels.scratch import LEAST_ASSIGNMENTS, is_out_of_memory
from actors.shard.batch_calls import run_batch
from actors.shard.merging import MergedCalls, count_experts, fitting
from actors.shard.under_way import Rooms, UnderWay
from actors.wire.address import Address
from actors.wire.body import call_body
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
        self._other_batch = MergedCalls(spec.hidden_size, spec.num_experts)
        self._overlapping: OverlappingKernel | None = None
        if isinstance(kernel, OverlappingKernel) and kernel.overlaps and not self._stretch:
            self._overlapping = kernel
        self._ended_s = 0.0
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
        batches = [
            (layer, there, batch)
            for (layer, there), group in groups.items()
            for batch in fitting(group, self.most_assignments)
        ]
        if self._overlapping is not None and len(batches) > 1:
            self._serve_overlapping(batches)
            return
        for layer, _, batch in batches:
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
        if group[0].header.coding is RowCoding.DEVICE:
            compute_us = int(self._compute_there(layer, group) * 1e6)
            answers = [result_header(request.header) for request in group]
            return [answer._replace(compute_us=compute_us) for answer in answers]
        rooms = Rooms.of(self._frames, group, self._batch)
        start_s = time.perf_counter()
        self._run_kernel(layer, self._batch.rows, torch.from_numpy(rooms.out))
        compute_s = time.perf_counter() - start_s
        rooms.filled()
        return rooms.answers_after(self._stretched(compute_s))

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
        run_batch(self._kernel, layer, self._batch, rows, out, self.most_assignments)

    # -- computing one batch while the next one's rows are on their way

    def _serve_overlapping(self, batches: list[tuple[int, bool, list[Request]]]) -> None:
        """As `_serve` for each (layer, whether the rows are on the device, calls)."""
        before: UnderWay | None = None
        for layer, there, group in batches:
            self._batch, self._other_batch = self._other_batch, self._batch
            good = group if there else self._merge(layer, group)
            started = self._start(layer, good) if good and not there else None
            if before is not None:
                self._finish(before)
            if good and started is None:
                self._serve(layer, good)
            before = started
        if before is not None:
            self._finish(before)

    def _start(self, layer: int, group: list[Request]) -> UnderWay | None:
        """Start what was merged; None: it is to be served by itself, as it is too large for one
        call, or because it failed."""
        batch = self._batch
        if max(batch.num_rows, batch.assignments) > self.most_assignments:
            return None
        assert self._overlapping is not None
        rooms, since_s = Rooms.of(self._frames, group, batch), time.perf_counter()
        try:
            call = self._overlapping.start(
                layer, batch.rows, *batch.assigned, torch.from_numpy(rooms.out)
            )
        except Exception:  # told when it is served by itself
            return None
        return UnderWay(layer, group, batch, rooms, call, since_s)

    def _finish(self, under_way: UnderWay) -> None:
        """Answer what was started."""
        now, self._batch = self._batch, under_way.batch
        try:
            try:
                under_way.call.finish()
            except Exception:
                log.warning("layer %d: a call did not finish", under_way.layer, exc_info=True)
                self._serve(under_way.layer, under_way.group)
                return
            # The device was with the batch before for some of that time.
            end_s = time.perf_counter()
            compute_s = end_s - max(under_way.since_s, self._ended_s)
            self._ended_s = end_s
            under_way.rooms.filled()
            answers = under_way.rooms.answers_after(compute_s)
            self._answer(under_way.layer, under_way.group, answers)
        finally:
            self._batch = now

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
        row, chosen = torch.zeros(1, dtype=torch.int32), torch.tensor([expert], dtype=torch.int32)
        try:
            self._kernel.compute(layer, rows, row, chosen, torch.ones(1), torch.empty(rows.shape))
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
