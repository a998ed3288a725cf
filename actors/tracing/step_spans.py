"""Spans of sampled steps: the step, its calls of experts by layer, what each shard computed.

Who made a span puts it into a bounded queue of the SDK, whose thread sends it; where the collector
is away spans are dropped, and nobody waits. Nothing here runs in a step that is not sampled.
"""

import secrets
import time
from collections.abc import Mapping, Sequence

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, TraceFlags
from opentelemetry.trace.status import Status, StatusCode

from actors.tracing.exporter import span_exporter
from actors.tracing.ids import dispatch_span_id, step_span_id, trace_id
from actors.tracing.settings import SpanSettings

MOST_WAITING = 1 << 14
"""Spans in the queue: of 61 layers on 256 shards a step has 62 in an engine and 61 in a shard."""

Attributes = Mapping[str, str | int | float]
Moments = Sequence[tuple[str, int]]
"""What happened within a span, and when (ns since 1970)."""

_SCOPE = InstrumentationScope("expertmesh.steps")
_SAMPLED = TraceFlags(TraceFlags.SAMPLED)


class StepSpans:
    """Of one process. All times are ns since 1970."""

    def __init__(self, processor: SpanProcessor, resource: Resource) -> None:
        self._processor, self._resource = processor, resource

    @classmethod
    def to_collector(cls, settings: SpanSettings) -> "StepSpans":
        """It connects when there are spans."""
        exporter = span_exporter(settings.endpoint, settings.protocol)
        resource = Resource(
            {
                "service.name": settings.service,
                "expertmesh.mesh": settings.mesh,
                "expertmesh.component": settings.component,
            }
        )
        return cls(BatchSpanProcessor(exporter, max_queue_size=MOST_WAITING), resource)

    def step(
        self,
        sample: int,
        start_ns: int,
        links: Sequence[SpanContext],
        attributes: Attributes,
        failed: bool = False,
    ) -> None:
        """One step of an engine, which ends now. links: spans of the requests in it."""
        self._end(
            "step", sample, step_span_id(sample), None, start_ns, time.time_ns(), attributes,
            links=[Link(link) for link in links], failed=failed,
        )  # fmt: skip

    def dispatch(
        self,
        sample: int,
        layer: int,
        start_ns: int,
        moments: Moments,
        attributes: Attributes,
        failed: bool = False,
    ) -> None:
        """One layer's call of experts, which ends now."""
        self._end(
            "dispatch", sample, dispatch_span_id(sample, layer), step_span_id(sample), start_ns,
            time.time_ns(), {"expertmesh.layer": layer, **attributes}, moments, failed=failed,
        )  # fmt: skip

    def compute(
        self, sample: int, layer: int, end_ns: int, compute_us: int, attributes: Attributes
    ) -> None:
        """What a shard computed for one call."""
        self._end(
            "compute", sample, secrets.randbits(64) or 1, dispatch_span_id(sample, layer),
            end_ns - 1000 * compute_us, end_ns, {"expertmesh.layer": layer, **attributes},
        )  # fmt: skip

    def close(self) -> None:
        """Send what waits."""
        self._processor.shutdown()

    def _end(
        self,
        name: str,
        sample: int,
        id: int,
        parent: int | None,
        start_ns: int,
        end_ns: int,
        attributes: Attributes,
        moments: Moments = (),
        links: Sequence[Link] = (),
        failed: bool = False,
    ) -> None:
        trace = trace_id(sample)
        above = parent and SpanContext(trace, parent, parent != step_span_id(sample), _SAMPLED)
        span = ReadableSpan(
            f"expertmesh.{name}",
            SpanContext(trace, id, False, _SAMPLED),
            above or None,
            self._resource,
            dict(attributes),
            [Event(what, timestamp=at_ns) for what, at_ns in moments],
            links,
            SpanKind.INTERNAL,
            status=Status(StatusCode.ERROR if failed else StatusCode.UNSET),
            start_time=start_ns,
            end_time=end_ns,
            instrumentation_scope=_SCOPE,
        )
        self._processor.on_end(span)
