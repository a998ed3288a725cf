"""How engines, routers and shards are told where spans of sampled steps go."""

from actors.tracing.settings import SpanSettings
from orchestrator.config.telemetry import TelemetryConfig
from orchestrator.telemetry.otlp import signal_endpoint


def span_settings(
    config: TelemetryConfig, mesh: str, kind: str, component: str
) -> SpanSettings | None:
    """kind: "engine", "router" or "shard". None where no step is sampled."""
    if config.otlp_endpoint is None or not config.step_trace_ratio:
        return None
    return SpanSettings(
        endpoint=signal_endpoint(config.otlp_endpoint, config.otlp_protocol, "traces"),
        protocol=config.otlp_protocol.value,
        mesh=mesh,
        service=f"expertmesh-{kind}",
        component=component,
        step_ratio=config.step_trace_ratio,
    )
