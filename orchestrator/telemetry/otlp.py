"""Metric families as OTLP: the same figures that `/metrics` shows, pushed to a collector.

The values were counted elsewhere (in shards, in vLLM, by the gateway's own registry), so they are
put into the OpenTelemetry SDK's data model as they are and sent by its exporters, not counted a
second time by its instruments.
"""

import logging
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any

from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricExporter,
    MetricExportResult,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from prometheus_client.core import Metric as Family

from actors.tracing.exporter import EXPORT_TIMEOUT_S
from orchestrator.config.telemetry import OtlpProtocol
from orchestrator.telemetry.table import BY_NAME

log = logging.getLogger(__name__)

SCOPE = InstrumentationScope("expertmesh")
_CUMULATIVE = AggregationTemporality.CUMULATIVE
_Labels = tuple[tuple[str, str], ...]


def signal_endpoint(endpoint: str, protocol: OtlpProtocol, signal: str) -> str:
    """Where a collector at `endpoint` takes metrics or traces: over HTTP each has a path."""
    if protocol is OtlpProtocol.GRPC:
        return endpoint
    return f"{endpoint.rstrip('/')}/v1/{signal}"


def exporter_to(endpoint: str, protocol: OtlpProtocol) -> MetricExporter:
    """The SDK's exporter for a collector; it connects when it first sends."""
    endpoint = signal_endpoint(endpoint, protocol, "metrics")
    if protocol is OtlpProtocol.GRPC:
        from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import (
            OTLPMetricExporter as Grpc,
        )

        return Grpc(endpoint, insecure=endpoint.startswith("http:"), timeout=EXPORT_TIMEOUT_S)
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter as Http

    return Http(endpoint, timeout=EXPORT_TIMEOUT_S)


class OtlpPush:
    """Sends families now and then; what a collector that is away misses is counted, not kept."""

    def __init__(self, exporter: MetricExporter, mesh: str) -> None:
        self._exporter = exporter
        self._resource = Resource({"service.name": "expertmesh", "expertmesh.mesh": mesh})
        self._began_ns = time.time_ns()
        self.failures = 0

    def push(self, families: Iterable[Family]) -> bool:
        """Blocks for at most the exporter's timeout: call it in a thread. Returns if it arrived."""
        data = metrics_data(families, self._resource, self._began_ns, time.time_ns())
        try:
            sent = self._exporter.export(data) is MetricExportResult.SUCCESS
        except Exception:  # a collector's fault must not end what is observed
            log.exception("metrics could not be exported")
            sent = False
        self.failures += not sent
        return sent

    def close(self) -> None:
        self._exporter.shutdown()


def metrics_data(
    families: Iterable[Family], resource: Resource, began_ns: int, now_ns: int
) -> MetricsData:
    """Everything as one export. began_ns: since when sums are counted."""
    metrics = [m for f in families if (m := _metric(f, began_ns, now_ns)) is not None]
    scope = ScopeMetrics(SCOPE, metrics, "")
    return MetricsData([ResourceMetrics(resource, [scope], "")])


def _metric(family: Family, began_ns: int, now_ns: int) -> Metric | None:
    """None for what OTLP has no form for, or an empty family."""
    name = f"{family.name}_total" if family.type == "counter" else family.name
    known = BY_NAME.get(name)
    unit = known.unit if known is not None else family.unit
    data: Any
    if family.type == "histogram":
        data = Histogram(_histograms(family, began_ns, now_ns), _CUMULATIVE)
    elif family.type == "counter":
        points = _numbers(family, began_ns, now_ns, name)
        data = Sum(points, _CUMULATIVE, is_monotonic=True)
    elif family.type in {"gauge", "unknown"}:
        data = Gauge(_numbers(family, began_ns, now_ns, name))
    else:
        return None
    return Metric(name, family.documentation, unit, data) if data.data_points else None


def _numbers(family: Family, began_ns: int, now_ns: int, name: str) -> list[NumberDataPoint]:
    return [
        NumberDataPoint(dict(s.labels), began_ns, now_ns, s.value)
        for s in family.samples
        if s.name == name
    ]


def _histograms(family: Family, began_ns: int, now_ns: int) -> list[HistogramDataPoint]:
    """Prometheus's buckets count everything below their bound, OTLP's what lies between two."""
    buckets: dict[_Labels, dict[float, float]] = defaultdict(dict)
    sums: dict[_Labels, float] = {}
    for sample in family.samples:
        labels = _without_bound(sample.labels)
        if sample.name.endswith("_bucket"):
            buckets[labels][float(sample.labels["le"])] = sample.value
        elif sample.name.endswith("_sum"):
            sums[labels] = sample.value
    points = []
    for labels, below in buckets.items():
        bounds = sorted(below)
        counts = [int(below[bounds[0]])]
        counts += [int(below[b] - below[a]) for a, b in pairwise(bounds)]
        points.append(
            HistogramDataPoint(
                dict(labels), began_ns, now_ns, sum(counts), sums.get(labels, 0.0), counts,
                bounds[:-1], 0.0, 0.0,
            )
        )  # fmt: skip
    return points


def _without_bound(labels: Mapping[str, str]) -> _Labels:
    return tuple(sorted((k, v) for k, v in labels.items() if k != "le"))
