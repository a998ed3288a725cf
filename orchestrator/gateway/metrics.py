"""Metrics of the gateway, and of every engine behind it, as one Prometheus page.

Labels are bounded: paths are those of the allow-list, `model_name` is the mesh's model (never what a
client wrote), and an engine's own series get the label `engine_id`.
"""

from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

LATENCY_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class GatewayMetrics:
    """`expertmesh_gateway_*`, in a registry of their own."""

    def __init__(self, model_name: str) -> None:
        self._registry = CollectorRegistry()
        self._model_name = model_name
        label = ("model_name",)
        prefix = "expertmesh_gateway_"
        self._requests = Counter(
            prefix + "requests_total",
            "Requests answered.",
            (*label, "path", "code"),
            registry=self._registry,
        )
        self._duration = Histogram(
            prefix + "request_duration_seconds",
            "From the request's arrival to its last byte.",
            (*label, "path"),
            buckets=LATENCY_BUCKETS_S,
            registry=self._registry,
        )
        self._first_byte = Histogram(
            prefix + "time_to_first_byte_seconds",
            "From the request's arrival to the first byte of the answer.",
            (*label, "path"),
            buckets=LATENCY_BUCKETS_S,
            registry=self._registry,
        )
        self._in_flight = Gauge(
            prefix + "requests_in_flight",
            "Requests not answered in full yet.",
            label,
            registry=self._registry,
        ).labels(model_name)
        self._ready = Gauge(
            prefix + "engines_ready",
            "Engines that take requests.",
            label,
            registry=self._registry,
        ).labels(model_name)
        self._retries = Counter(
            prefix + "retries_total",
            "Requests sent to another engine after one was lost.",
            label,
            registry=self._registry,
        ).labels(model_name)
        self._cut = Counter(
            prefix + "streams_cut_total",
            "Streams ended by an error as their engine was lost.",
            label,
            registry=self._registry,
        ).labels(model_name)
        self._disconnects = Counter(
            prefix + "disconnects_total",
            "Clients that left before their answer was complete.",
            label,
            registry=self._registry,
        ).labels(model_name)

    def count_answer(
        self, path: str, code: int, duration_s: float, first_byte_s: float | None
    ) -> None:
        self._requests.labels(self._model_name, path, str(code)).inc()
        self._duration.labels(self._model_name, path).observe(duration_s)
        if first_byte_s is not None:
            self._first_byte.labels(self._model_name, path).observe(first_byte_s)

    def count_retry(self) -> None:
        self._retries.inc()

    def count_cut_stream(self) -> None:
        self._cut.inc()

    def count_disconnect(self) -> None:
        self._disconnects.inc()

    def page(self, in_flight: int, engines_ready: int, engines: Mapping[str, str]) -> bytes:
        """Prometheus text: the gateway's metrics, then those of `engines` (id -> their page)."""
        self._in_flight.set(in_flight)
        self._ready.set(engines_ready)
        return generate_latest(self._registry) + merge_pages(engines)


def merge_pages(pages: Mapping[str, str]) -> bytes:
    """One Prometheus page of several, each sample labelled with its `engine_id`."""
    families: dict[str, Metric] = {}
    for engine_id, text in pages.items():
        for parsed in text_string_to_metric_families(text):
            family = families.setdefault(
                parsed.name, Metric(parsed.name, parsed.documentation, parsed.type)
            )
            for sample in parsed.samples:
                labels = {**sample.labels, "engine_id": engine_id}
                family.add_sample(sample.name, labels, sample.value, sample.timestamp)
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Families(families.values()))
    return generate_latest(registry)


class _Families(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = list(families)

    def collect(self) -> Iterable[Metric]:
        return self._families
