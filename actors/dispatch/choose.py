"""The dispatcher that a process takes: the plain one unless its mesh samples steps."""

from actors.dispatch.dispatcher import Dispatcher
from actors.dispatch.view_source import ViewSource
from actors.tracing.settings import SpanSettings


def dispatcher_for(views: ViewSource, secret: bytes, spans: SpanSettings | None) -> Dispatcher:
    """spans: where those of sampled steps go; None: no step is sampled."""
    if spans is None:
        return Dispatcher(views, secret)
    from actors.dispatch.traced import TracedDispatcher  # the SDK takes memory
    from actors.tracing.step_spans import StepSpans

    return TracedDispatcher(views, secret, StepSpans.to_collector(spans))
