"""Which steps of an engine are sampled, and the spans of those steps.

The scheduler decides, as it knows the requests of the batch with the trace contexts that they came
with, and the decision goes to the workers with the step. There it is in force while the model runs:
calls of experts carry its id to the shards. The step's span, made by the first worker, links to the
spans of the requests, which may be in many traces.
"""

import random
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from actors.tracing.ids import DRAWN_BITS, of_rank, sample_id
from actors.tracing.settings import settings_of_process

if TYPE_CHECKING:
    from actors.tracing.step_spans import StepSpans

sample = 0
"""Id of the step that this worker runs; 0: none, or it is not sampled."""

_ATTRIBUTE = "expertmesh_sample"
"""Of vLLM's `SchedulerOutput`, where the step is sampled."""

Headers = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class StepSample:
    """requests: `traceparent` of those that have one."""

    id: int
    requests: tuple[str, ...]


class StepSampler:
    """The scheduler's half."""

    def __init__(self, ratio: float, draw: random.Random) -> None:
        self._ratio, self._draw = ratio, draw

    @classmethod
    def of_process(cls) -> "StepSampler | None":
        """None where no step is sampled."""
        settings = settings_of_process()
        return cls(settings.step_ratio, random.Random()) if settings else None

    def mark(self, step: Any, headers_of: Callable[[str], Headers | None]) -> None:
        """Decide about a step (vLLM's `SchedulerOutput`). headers_of: a request's."""
        if step.total_num_scheduled_tokens and self._draw.random() < self._ratio:
            found = (headers_of(id) or {} for id in step.num_scheduled_tokens)
            parents = tuple(h["traceparent"] for h in found if "traceparent" in h)
            drawn = self._draw.getrandbits(DRAWN_BITS)
            setattr(step, _ATTRIBUTE, StepSample(sample_id(drawn), parents))


def trace_steps(runner: Any, rank: int) -> None:
    """Make spans of the sampled steps that a worker's model runner is given from now on."""
    settings = settings_of_process()
    if settings is None:
        return
    from actors.tracing.step_spans import StepSpans

    spans = StepSpans.to_collector(settings) if rank == 0 else None
    run = runner.execute_model

    def execute_model(step: Any, *arguments: Any, **named: Any) -> Any:
        chosen: StepSample | None = getattr(step, _ATTRIBUTE, None)
        if chosen is None:
            return run(step, *arguments, **named)
        return _sampled(chosen, step, rank, spans, lambda: run(step, *arguments, **named))

    runner.execute_model = execute_model


def _sampled(
    chosen: StepSample, step: Any, rank: int, spans: "StepSpans | None", run: Callable[[], Any]
) -> Any:
    global sample  # noqa: PLW0603 - vLLM runs a model in one thread
    start_ns, failed = time.time_ns(), True
    sample = of_rank(chosen.id, rank)
    try:
        output = run()
        failed = False
    finally:
        sample = 0
        if spans is not None:
            counts = {
                "expertmesh.requests": len(step.num_scheduled_tokens),
                "expertmesh.tokens": step.total_num_scheduled_tokens,
            }
            spans.step(chosen.id, start_ns, list(_contexts(chosen.requests)), counts, failed)
    return output


def _contexts(parents: Iterable[str]) -> Iterable[Any]:
    """Of the requests that are traced; others would lead nowhere."""
    from opentelemetry.trace import get_current_span
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    for parent in parents:
        context = TraceContextTextMapPropagator().extract({"traceparent": parent})
        found = get_current_span(context).get_span_context()
        if found.is_valid and found.trace_flags.sampled:
            yield found
