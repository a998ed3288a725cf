"""The OpenTelemetry SDK's exporter of spans."""

from opentelemetry.sdk.trace.export import SpanExporter

EXPORT_TIMEOUT_S = 5


def span_exporter(endpoint: str, protocol: str) -> SpanExporter:
    """endpoint: over HTTP with its path; protocol: "grpc" or "http". Connects when it first
    sends."""
    if protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as Grpc

        return Grpc(endpoint, insecure=endpoint.startswith("http:"), timeout=EXPORT_TIMEOUT_S)
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as Http

    return Http(endpoint, timeout=EXPORT_TIMEOUT_S)
