"""Metrics of the gateway itself, and one page that also has the mesh's and every engine's.

The gateway's own live in a registry of its own; those of the mesh come from the last snapshot
(`orchestrator.telemetry`). Each engine's page is parsed and written again with an `engine_id`
label, so that a metric of several engines is declared once. Text and OpenMetrics are both spoken.
"""

import logging
from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from orchestrator.telemetry.table import BY_NAME

logger = logging.getLogger(__name__)

LATENCY_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)

_PREFIX = "expertmesh_gateway_"


class GatewayMetrics:
    """`expertmesh_gateway_*`, in a registry of their own; all have the label `model_name`."""

    def __init__(self, model_name: str) -> None:
        self._registry = CollectorRegistry()
        self._model_name = model_name
        self._requests = Counter(*_declared("requests_total"), registry=self._registry)
        self._duration = self._histogram("request_duration_seconds")
        self._first_byte = self._histogram("time_to_first_byte_seconds")
        self._in_flight = self._gauge("requests_in_flight")
        self._ready = self._gauge("engines_ready")
        self._retries = self._counter("retries_total")
        self._continued = self._counter("continued_total")
        self._cut = self._counter("streams_cut_total")
        self._kinds = Counter(*_declared("traffic_requests_total"), registry=self._registry)

    def count_answer(
        self,
        path: str,
        code: int,
        duration_s: float,
        first_byte_s: float | None,
        trace_id: str | None = None,
    ) -> None:
        """One request was answered with `code`; times are since its arrival. trace_id: of a trace
        that is kept, which OpenMetrics shows as the exemplar of its range."""
        exemplar = None if trace_id is None else {"trace_id": trace_id}
        self._requests.labels(self._model_name, path, str(code)).inc()
        self._duration.labels(self._model_name, path).observe(duration_s, exemplar)
        if first_byte_s is not None:
            self._first_byte.labels(self._model_name, path).observe(first_byte_s, exemplar)

    def count_kind(self, kind: str) -> None:
        """A request of this kind of traffic is handed to an engine."""
        self._kinds.labels(self._model_name, kind).inc()

    def count_move(self, continued: bool) -> None:
        """A request goes to another engine, from its start or from where it was."""
        (self._continued if continued else self._retries).inc()

    def count_cut_stream(self) -> None:
        self._cut.inc()

    def families(self, in_flight: int, engines_ready: int) -> list[Metric]:
        """The gateway's own."""
        self._in_flight.set(in_flight)
        self._ready.set(engines_ready)
        return list(self._registry.collect())

    def _counter(self, name: str) -> Counter:
        counter = Counter(*_declared(name), registry=self._registry)
        return counter.labels(self._model_name)

    def _gauge(self, name: str) -> Gauge:
        gauge = Gauge(*_declared(name), registry=self._registry)
        return gauge.labels(self._model_name)

    def _histogram(self, name: str) -> Histogram:
        return Histogram(*_declared(name), buckets=LATENCY_BUCKETS_S, registry=self._registry)


def _declared(name: str) -> tuple[str, str, tuple[str, ...]]:
    """Name, text and labels as the table has them."""
    metric = BY_NAME[_PREFIX + name]
    return metric.name, metric.help, metric.labels


def page_of(families: Iterable[Metric], accept: str) -> tuple[bytes, str]:
    """(page, media type): OpenMetrics if the Accept header asks for it, else Prometheus text."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Families(families))
    if "application/openmetrics-text" in accept:
        # Not the library's choice of encoder: that one writes `vllm_x` where the name is `vllm:x`.
        page: bytes = openmetrics.generate_latest(  # type: ignore[no-untyped-call]
            registry, escaping=openmetrics.ALLOWUTF8, version="1.0.0"
        )
        return page, openmetrics.CONTENT_TYPE_LATEST
    return generate_latest(registry), CONTENT_TYPE_PLAIN_0_0_4


def engine_families(pages: Mapping[str, str]) -> list[Metric]:
    """Metrics of all engines (id -> page), each sample labelled with its `engine_id`.

    A page that is not Prometheus text is left out.
    """
    families: dict[str, Metric] = {}
    for engine_id, page in pages.items():
        try:
            parsed = list(text_string_to_metric_families(page))
        except ValueError as error:
            logger.warning("metrics of engine %s cannot be read: %s", engine_id, error)
            continue
        for metric in parsed:
            family = families.setdefault(
                metric.name, Metric(metric.name, metric.documentation, metric.type)
            )
            for sample in metric.samples:
                labels = {**sample.labels, "engine_id": engine_id}
                family.add_sample(sample.name, labels, sample.value, sample.timestamp)
    return list(families.values())


class _Families(Collector):
    """Metric families that exist already."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = list(families)

    def collect(self) -> Iterable[Metric]:
        return self._families
