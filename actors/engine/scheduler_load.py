"""What vLLM's scheduler has to do and has done, from metrics that vLLM keeps in this process."""

from typing import TypedDict

from prometheus_client import REGISTRY

RUNNING = "vllm:num_requests_running"
WAITING = "vllm:num_requests_waiting"
KV_USED = "vllm:kv_cache_usage_perc"
PROMPTED = "vllm:prompt_tokens_total"
GENERATED = "vllm:generation_tokens_total"


class SchedulerLoad(TypedDict):
    """Fields of `EngineDescription`."""

    running: int
    waiting: int
    kv_used: float
    prompted: int
    generated: int


def scheduler_load() -> SchedulerLoad:
    """Sums over what this process has; zeros where vLLM has recorded nothing yet."""
    found = dict.fromkeys((RUNNING, WAITING, KV_USED, PROMPTED, GENERATED), 0.0)
    for family in REGISTRY.restricted_registry(list(found)).collect():
        for sample in family.samples:
            if sample.name in found:
                found[sample.name] += sample.value
    return SchedulerLoad(
        running=int(found[RUNNING]),
        waiting=int(found[WAITING]),
        kv_used=found[KV_USED],
        prompted=int(found[PROMPTED]),
        generated=int(found[GENERATED]),
    )
