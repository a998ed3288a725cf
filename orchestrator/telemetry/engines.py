"""The few figures of an engine's metrics that the page and the curves show."""

import re
from dataclasses import dataclass

_SAMPLE = re.compile(r"^(vllm:\w+)(?:\{[^}]*\})? (\S+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class EngineFigures:
    """running, waiting: requests inside vLLM. kv_used: part of the KV cache in use. generated,
    prompted: tokens since the engine's start."""

    running: float = 0.0
    waiting: float = 0.0
    kv_used: float = 0.0
    generated: float = 0.0
    prompted: float = 0.0


_NAMES = {
    "vllm:num_requests_running": "running",
    "vllm:num_requests_waiting": "waiting",
    "vllm:kv_cache_usage_perc": "kv_used",
    "vllm:generation_tokens_total": "generated",
    "vllm:prompt_tokens_total": "prompted",
}


def engine_figures(page: str) -> EngineFigures:
    """Sums over what vLLM tells apart. A page without these metrics gives zeros.

    Lines are picked out, not parsed: this runs every few seconds in the loop that carries tokens.
    """
    sums = dict.fromkeys(_NAMES.values(), 0.0)
    for name, value in _SAMPLE.findall(page):
        if field := _NAMES.get(name):
            sums[field] += float(value)
    return EngineFigures(**sums)
