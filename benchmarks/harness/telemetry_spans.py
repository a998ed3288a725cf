"""Calls of experts with and without spans of sampled steps, in turns."""

import random
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from actors.dispatch.dispatcher import Dispatcher
from actors.dispatch.traced import TracedDispatcher
from actors.dispatch.view_source import FixedView
from actors.tracing.ids import DRAWN_BITS, sample_id
from actors.tracing.settings import SpanSettings
from actors.tracing.step_spans import StepSpans
from benchmarks.harness.bare_shards import SECRET, BareMesh, bare_shards
from benchmarks.harness.child_process import environment
from orchestrator.config.telemetry import OtlpProtocol, TelemetryConfig
from orchestrator.telemetry.step_tracing import span_settings
from tests.telemetry.test_otlp import http_collector

ROWS, TOP_K = 16, 8
ROUNDS = 20
ROUND_S = 0.4
WARM_CALLS = 50
PLAIN = "no tracing"
DEFAULT_RATIO = TelemetryConfig().step_trace_ratio
RATIOS = {"traced, none sampled": 0.0, "traced, default": DEFAULT_RATIO, "traced, all": 1.0}


@contextmanager
def collected() -> Iterator[SpanSettings]:
    """A collector in this process."""
    with http_collector([]) as endpoint:
        config = TelemetryConfig(otlp_endpoint=endpoint, otlp_protocol=OtlpProtocol.HTTP)
        settings = span_settings(config, "bare", "engine", "engine-0")
        assert settings is not None
        yield settings


def measure(mesh: BareMesh) -> list[dict[str, Any]]:
    """One row for each way to trace: times are over those of the plain dispatcher, by round."""
    with (
        collected() as settings,
        tempfile.TemporaryDirectory(prefix="xm") as folder,
        environment(settings.variables()),
        bare_shards(mesh, Path(folder)) as (view, _),
    ):
        generator = torch.Generator().manual_seed(1)
        rows = torch.randn(ROWS, mesh.hidden, generator=generator).bfloat16()
        ids = torch.rand(ROWS, mesh.num_experts, generator=generator).topk(TOP_K).indices.int()
        call = (0, rows, torch.rand(ROWS, TOP_K, generator=generator), ids)
        with environment(mesh.environment()):
            plain = Dispatcher(FixedView(view), SECRET)
            spans = StepSpans.to_collector(settings)
            traced = TracedDispatcher(FixedView(view), SECRET, spans)
        draw = random.Random(1)

        def without() -> None:
            plain.wait(plain.send(*call))

        def within(ratio: float) -> Callable[[], None]:
            def one() -> None:
                sampled = draw.random() < ratio
                sample = sample_id(draw.getrandbits(DRAWN_BITS)) if sampled else 0
                traced.wait(traced.send(*call, sample))

            return one

        ways = {PLAIN: without} | {name: within(ratio) for name, ratio in RATIOS.items()}
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
        for number in range(ROUNDS):
            names = list(ways) if number % 2 else list(ways)[::-1]
            for name in names:
                taken[name].append(_round(ways[name]))
        plain.close()
        traced.close()
    return [_row(name, np.array(times), np.array(taken[PLAIN])) for name, times in taken.items()]


def _round(call: Callable[[], None]) -> tuple[float, float]:
    """(median, mean) microseconds of a call."""
    for _ in range(WARM_CALLS):
        call()
    times, end_s = [], time.perf_counter() + ROUND_S
    while (began_s := time.perf_counter()) < end_s:
        call()
        times.append(time.perf_counter() - began_s)
    return 1e6 * float(np.median(times)), 1e6 * float(np.mean(times))


def _row(name: str, times: np.ndarray, plain: np.ndarray) -> dict[str, Any]:
    ratios = times / plain
    low, high = np.percentile(ratios[:, 0], [25, 75])
    return {
        "way": name,
        "p50_us": float(times[:, 0].min()),
        "p50_ratio": float(np.median(ratios[:, 0])),
        "quartiles": f"{low:.3f} to {high:.3f}",
        "mean_ratio": float(np.median(ratios[:, 1])),
    }
