"""The telemetry half of the config: what is measured how often, and where it goes."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field, StringConstraints

from orchestrator.config.fields import Count, Seconds, Section


class OtlpProtocol(StrEnum):
    """How OTLP is spoken."""

    GRPC = "grpc"
    HTTP = "http"


class TelemetryConfig(Section):
    """Metrics, the built-in page, and their export."""

    interval_s: Seconds = 2.0
    """Time between two looks of the gateway at shards and engines, for `/metrics` and the page."""
    hot_experts: Annotated[int, Field(ge=0, le=64)] = 10
    """How many of the hottest experts have metrics of their own."""
    history: Count = 300
    """Looks that the gateway keeps for the page's curves."""
    otlp_endpoint: Annotated[str, StringConstraints(pattern=r"^https?://")] | None = None
    """Collector that gets all metrics, and traces where there are any, as OTLP, such as
    `http://127.0.0.1:4317` (gRPC) or `http://127.0.0.1:4318` (HTTP); unset: nothing is sent
    anywhere."""
    otlp_protocol: OtlpProtocol = OtlpProtocol.GRPC
    """`grpc` or `http`."""
    otlp_interval_s: Seconds = 15.0
    """Time between two exports of metrics."""
    trace_ratio: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Part of the requests that is traced where the caller's `traceparent` does not decide; 0:
    those alone whose caller wants it. Needs `otlp_endpoint`."""
    step_trace_ratio: Annotated[float, Field(ge=0, le=1)] = 0.001
    """Part of the engines' steps that is traced, with the calls of experts in them and what shards
    computed for these; 0: none. Needs `otlp_endpoint`."""
