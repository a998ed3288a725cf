"""How engines are told to export spans: vLLM makes them itself, one for each request, with the
times it spent in the queue, in prefill and in decode. The gateway sends its span's context along,
so they are children of the gateway's. Sampled steps are ours (`actors.vllm_plugin.traced_step`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from orchestrator.config.telemetry import OtlpProtocol, TelemetryConfig
from orchestrator.telemetry.otlp import signal_endpoint
from orchestrator.telemetry.step_tracing import span_settings

ENDPOINT_FLAG = "otlp_traces_endpoint"
_PROTOCOLS = {OtlpProtocol.GRPC: "grpc", OtlpProtocol.HTTP: "http/protobuf"}


@dataclass(frozen=True, slots=True)
class EngineTracing:
    """flags: of vLLM. environment: of its processes."""

    flags: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)


def engine_tracing(config: TelemetryConfig, mesh: str, engine: str) -> EngineTracing:
    """Nothing where no collector is configured."""
    if config.otlp_endpoint is None:
        return EngineTracing()
    steps = span_settings(config, mesh, "engine", engine)
    endpoint = signal_endpoint(config.otlp_endpoint, config.otlp_protocol, "traces")
    return EngineTracing(
        {ENDPOINT_FLAG: endpoint},
        {
            "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": _PROTOCOLS[config.otlp_protocol],
            # The gateway decides what is kept: requests of batch jobs have no trace.
            "OTEL_TRACES_SAMPLER": "parentbased_always_off",
            "OTEL_SERVICE_NAME": "expertmesh-engine",
            "OTEL_RESOURCE_ATTRIBUTES": f"expertmesh.mesh={mesh},expertmesh.component={engine}",
            **(steps.variables() if steps else {}),
        },
    )
