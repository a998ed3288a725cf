"""A dispatcher whose calls in sampled steps become spans; other calls it leaves as they are."""

import time

import numpy as np
import torch

from actors.dispatch.backend import ExpertUnavailable
from actors.dispatch.dispatcher import Call, Dispatcher
from actors.dispatch.view_source import ViewSource
from actors.tracing.step_spans import StepSpans
from actors.wire.device_memory import DeviceMemory


class TracedDispatcher(Dispatcher):
    """Sampled calls take the same way as others, and give the same bits."""

    def __init__(
        self,
        views: ViewSource,
        secret: bytes,
        spans: StepSpans,
        device: DeviceMemory | None = None,
    ) -> None:
        super().__init__(views, secret, device)
        self._spans = spans
        self._sent: dict[int, tuple[int, int]] = {}
        """When sampled calls began to be sent and were sent, by `id`; ns since 1970."""
        self._split: dict[int, dict[str, int]] = {}
        """How they were split, by `id`."""

    def send(
        self,
        layer: int,
        rows: torch.Tensor,
        topk_weights: torch.Tensor,
        topk_ids: torch.Tensor,
        sample: int = 0,
    ) -> Call:
        if not sample:
            return super().send(layer, rows, topk_weights, topk_ids)
        start_ns = time.time_ns()
        try:
            call = super().send(layer, rows, topk_weights, topk_ids, sample)
        except ExpertUnavailable:
            self._spans.dispatch(sample, layer, start_ns, [], {}, failed=True)
            raise
        self._sent[id(call)] = (start_ns, time.time_ns())
        return call

    def wait(self, call: Call) -> torch.Tensor:
        if not call.sample:
            return super().wait(call)
        wait_ns, failed = time.time_ns(), True
        try:
            result = super().wait(call)
            failed = False
        finally:
            start_ns, sent_ns = self._sent.pop(id(call))
            moments = [("sent", sent_ns), ("waited for", wait_ns)]
            counts = {
                **self._split.pop(id(call)),
                "expertmesh.kernel_us": call.compute_us,
                "expertmesh.epoch": self._links.view.epoch.number,
            }
            self._spans.dispatch(call.sample, call.layer, start_ns, moments, counts, failed)
        return result

    def _release(self, call: Call) -> None:
        if call.sample:
            shares = np.diff(call.flights[0].split.first)
            self._split[id(call)] = {
                "expertmesh.rows": len(call.rows),
                "expertmesh.assignments": int(shares.sum()),
                "expertmesh.shards": int(np.count_nonzero(shares)),
                "expertmesh.resent": sum(len(flight.cover) for flight in call.flights),
            }
        super()._release(call)

    def close(self) -> None:
        super().close()
        self._spans.close()
