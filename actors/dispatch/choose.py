"""The dispatcher that a process takes: the plain one unless its mesh samples steps."""

from actors.dispatch.dispatcher import Dispatcher
from actors.dispatch.view_source import ViewSource
from actors.tracing.settings import SpanSettings
from actors.wire.device_memory import DeviceMemory


def dispatcher_for(
    views: ViewSource,
    secret: bytes,
    spans: SpanSettings | None,
    device: DeviceMemory | None = None,
) -> Dispatcher:
    """spans: where those of sampled steps go; None: no step is sampled. device: whose memory may be
    shared with shards on this node."""
    if spans is None:
        return Dispatcher(views, secret, device)
    from actors.dispatch.traced import TracedDispatcher  # the SDK takes memory
    from actors.tracing.step_spans import StepSpans

    return TracedDispatcher(views, secret, StepSpans.to_collector(spans), device)
