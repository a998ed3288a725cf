"""What counting by kind of traffic costs an engine: CPU time of one counted step and of a second.

Of a counted step everything is measured that other steps do not have: what the scheduler says of
the requests, all layers' counts, and adding them to the window.
"""

import random
import statistics
import time
from types import SimpleNamespace
from typing import Any

import numpy as np

from actors.dispatch.traffic_counts import TrafficCounts
from actors.vllm_plugin.traffic_steps import (
    STEPS_PER_S,
    TRAFFIC_KIND,
    StepCount,
    TrafficSampler,
    traffic_of_step,
)

TOP_K = 8
KINDS = ("default", "code", "chat", "batch")
SHAPES = (("decode", 64, 1), ("decode", 256, 1), ("prefill", 4, 512))
"""What a step does, requests in it, tokens of each."""
STEPS, ROUNDS = 5, 7
CALLS = 20_000


def measure(layers: int, experts: int) -> list[dict[str, Any]]:
    return [_of_step(layers, experts, *shape) for shape in SHAPES] + [_of_other_steps()]


def _of_step(layers: int, experts: int, does: str, requests: int, tokens: int) -> dict[str, Any]:
    rows = requests * tokens
    counts = TrafficCounts(range(layers), experts)
    asked = {str(n): _request(KINDS[n % len(KINDS)]) for n in range(requests)}
    scheduled = dict.fromkeys(asked, tokens)
    ids = np.random.default_rng(0).integers(0, experts, (layers, rows, TOP_K)).astype(np.int32)

    def step() -> None:
        count = StepCount(traffic_of_step(scheduled, asked, 1), counts, lambda: asked)
        for layer in range(layers):
            count.layer(layer, ids[layer], 0, rows)
        count.add()

    step_ms = _median_ms(step)
    return {
        "a counted step": f"{does}, {rows} rows",
        "kinds": len(KINDS),
        "step_ms": step_ms,
        "of a second": step_ms / 1e3 * STEPS_PER_S,
    }


def _of_other_steps() -> dict[str, Any]:
    """Microseconds of a step that is not counted, in the scheduler."""
    sampler = TrafficSampler(random.Random(0), 0.0)
    step = SimpleNamespace(total_num_scheduled_tokens=1, num_scheduled_tokens={"a": 1})
    asked = {"a": _request(KINDS[0])}
    sampler.mark(step, asked, 0.0)
    for _ in range(CALLS):
        sampler.mark(step, asked, 0.5)
    sampler.mark(step, asked, 1.0)  # from now on one in many
    began_s = time.thread_time()
    for _ in range(CALLS):
        sampler.mark(step, asked, 1.5)
    return {"a step in the scheduler, us": (time.thread_time() - began_s) / CALLS * 1e6}


def _request(kind: str) -> Any:
    params = SimpleNamespace(extra_args={TRAFFIC_KIND: kind})
    return SimpleNamespace(sampling_params=params, num_computed_tokens=0, mm_features=())


def _median_ms(step: Any) -> float:
    step()
    times = []
    for _ in range(ROUNDS):
        began_s = time.thread_time()
        for _ in range(STEPS):
            step()
        times.append((time.thread_time() - began_s) / STEPS * 1e3)
    return statistics.median(times)
