"""Metrics of the gateway, and of every engine behind it, as one Prometheus page.

Labels are bounded: paths are those of the allow-list, `model_name` is the mesh's model (never what
a client wrote), and an engine's own series get the label `engine_id`.
"""

import logging
from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

logger = logging.getLogger(__name__)

LATENCY_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)

_PREFIX = "expertmesh_gateway_"


class GatewayMetrics:
    """`expertmesh_gateway_*`, in a registry of their own; all have the label `model_name`."""

    def __init__(self, model_name: str) -> None:
        self._registry = CollectorRegistry()
        self._model_name = model_name
        self._requests = Counter(
            _PREFIX + "requests_total",
            "Requests answered; code 499 is a client that left early.",
            ("model_name", "path", "code"),
            registry=self._registry,
        )
        self._duration = self._histogram(
            "request_duration_seconds", "From the request's arrival to its last byte."
        )
        self._first_byte = self._histogram(
            "time_to_first_byte_seconds", "From the request's arrival to its first byte."
        )
        self._in_flight = self._gauge("requests_in_flight", "Requests not answered in full yet.")
        self._ready = self._gauge("engines_ready", "Engines that take requests.")
        self._retries = self._counter(
            "retries_total", "Requests sent to another engine after one was lost."
        )
        self._cut = self._counter(
            "streams_cut_total", "Streams that ended in an error as their engine was lost."
        )

    def count_answer(
        self, path: str, code: int, duration_s: float, first_byte_s: float | None
    ) -> None:
        """One request was answered with `code`; times are since its arrival."""
        self._requests.labels(self._model_name, path, str(code)).inc()
        self._duration.labels(self._model_name, path).observe(duration_s)
        if first_byte_s is not None:
            self._first_byte.labels(self._model_name, path).observe(first_byte_s)

    def count_retry(self) -> None:
        self._retries.inc()

    def count_cut_stream(self) -> None:
        self._cut.inc()

    def page(self, in_flight: int, engines_ready: int, engines: Mapping[str, str]) -> bytes:
        """Prometheus text: the gateway's metrics, then those of `engines` (id -> their page)."""
        self._in_flight.set(in_flight)
        self._ready.set(engines_ready)
        return generate_latest(self._registry) + merge_pages(engines)

    def _counter(self, name: str, text: str) -> Counter:
        counter = Counter(_PREFIX + name, text, ("model_name",), registry=self._registry)
        return counter.labels(self._model_name)

    def _gauge(self, name: str, text: str) -> Gauge:
        gauge = Gauge(_PREFIX + name, text, ("model_name",), registry=self._registry)
        return gauge.labels(self._model_name)

    def _histogram(self, name: str, text: str) -> Histogram:
        labels = ("model_name", "path")
        return Histogram(
            _PREFIX + name, text, labels, buckets=LATENCY_BUCKETS_S, registry=self._registry
        )


def merge_pages(pages: Mapping[str, str]) -> bytes:
    """One Prometheus page of several, each sample labelled with its `engine_id`.

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
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Families(families.values()))
    return generate_latest(registry)


class _Families(Collector):
    """Metric families that exist already."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = list(families)

    def collect(self) -> Iterable[Metric]:
        return self._families
