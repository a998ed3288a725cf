"""What the Grafana dashboards show, as data; `build.py` makes Grafana's JSON of it."""

from dataclasses import dataclass, field
from enum import StrEnum


class Look(StrEnum):
    """How a panel draws its queries."""

    CURVES = "curves"
    FIGURE = "figure"
    BARS = "bars"


@dataclass(frozen=True, slots=True)
class Query:
    """expr: PromQL; legend: of its curves, with labels in double braces."""

    expr: str
    legend: str = ""


@dataclass(frozen=True, slots=True)
class Panel:
    """unit: in Grafana's words; width: of 24 columns; most: end of the axis, None: of the data."""

    title: str
    description: str
    unit: str
    queries: tuple[Query, ...]
    look: Look = Look.CURVES
    width: int = 12
    most: float | None = None


@dataclass(frozen=True, slots=True)
class Board:
    """uid: part of its address in Grafana, and its file's name."""

    uid: str
    title: str
    description: str
    panels: tuple[Panel, ...] = field(default_factory=tuple)


_WINDOW = "$__rate_interval"


def _quantile(q: float, metric: str) -> str:
    return f"histogram_quantile({q}, sum by (le) (rate({metric}_bucket[{_WINDOW}])))"


SERVING = Board(
    "expertmesh-serving",
    "ExpertMesh: serving",
    "What clients get: rates, latencies, queues.",
    (
        Panel(
            "Engines ready",
            "Engines that take requests.",
            "none",
            (Query("expertmesh_gateway_engines_ready"),),
            Look.FIGURE,
            6,
        ),
        Panel(
            "Requests in flight",
            "Requests not answered in full yet.",
            "none",
            (Query("expertmesh_gateway_requests_in_flight"),),
            Look.FIGURE,
            6,
        ),
        Panel(
            "Tokens generated",
            "Per second, all engines.",
            "short",
            (Query(f"sum(rate(vllm:generation_tokens_total[{_WINDOW}]))"),),
            Look.FIGURE,
            6,
        ),
        Panel(
            "Answers with an error",
            "Part of the answers with status 500 and above.",
            "percentunit",
            (
                Query(
                    f'(sum(rate(expertmesh_gateway_requests_total{{code=~"5.."}}[{_WINDOW}])) or '
                    f"vector(0)) / sum(rate(expertmesh_gateway_requests_total[{_WINDOW}]))"
                ),
            ),
            Look.FIGURE,
            6,
        ),
        Panel(
            "Requests by path and code",
            "Code 499 is a client that left early, 429 a full queue.",
            "reqps",
            (
                Query(
                    f"sum by (path, code) (rate(expertmesh_gateway_requests_total[{_WINDOW}]))",
                    "{{path}} {{code}}",
                ),
            ),
        ),
        Panel(
            "Time to first byte",
            "From a request's arrival at the gateway.",
            "s",
            tuple(
                Query(_quantile(q, "expertmesh_gateway_time_to_first_byte_seconds"), f"p{q:.0%}")
                for q in (0.5, 0.9, 0.99)
            ),
        ),
        Panel(
            "Whole requests",
            "From a request's arrival at the gateway to its last byte.",
            "s",
            tuple(
                Query(_quantile(q, "expertmesh_gateway_request_duration_seconds"), f"p{q:.0%}")
                for q in (0.5, 0.9, 0.99)
            ),
        ),
        Panel(
            "Requests inside the engines",
            "vLLM's own count.",
            "none",
            (
                Query("sum by (engine_id) (vllm:num_requests_running)", "{{engine_id}} running"),
                Query("sum by (engine_id) (vllm:num_requests_waiting)", "{{engine_id}} waiting"),
            ),
        ),
        Panel(
            "KV cache in use",
            "Part of each engine's cache.",
            "percentunit",
            (Query("max by (engine_id) (vllm:kv_cache_usage_perc)", "{{engine_id}}"),),
            most=1.0,
        ),
        Panel(
            "Retries and cut streams",
            "What lost engines cost.",
            "cps",
            (
                Query(f"rate(expertmesh_gateway_retries_total[{_WINDOW}])", "sent again"),
                Query(f"rate(expertmesh_gateway_continued_total[{_WINDOW}])", "continued"),
                Query(f"rate(expertmesh_gateway_streams_cut_total[{_WINDOW}])", "streams cut"),
            ),
        ),
    ),
)

EXPERTS = Board(
    "expertmesh-experts",
    "ExpertMesh: expert load",
    "How evenly the experts' work is spread; the heat map is on the gateway's own page.",
    (
        Panel(
            "Balancedness",
            "Mean over largest time of the shards, all layers; 1 is even.",
            "percentunit",
            (Query("expertmesh_balancedness"),),
            Look.FIGURE,
            6,
            1.0,
        ),
        Panel(
            "Assignments",
            "Rows times experts, per second.",
            "short",
            (Query(f"sum(rate(expertmesh_shard_assignments_total[{_WINDOW}]))"),),
            Look.FIGURE,
            6,
        ),
        Panel(
            "Hottest expert",
            "Part of its layer's load.",
            "percentunit",
            (Query('expertmesh_hot_expert_share{rank="1"}'),),
            Look.FIGURE,
            6,
        ),
        Panel(
            "Plan epoch",
            "Number of the plan that is served.",
            "none",
            (Query("expertmesh_epoch"),),
            Look.FIGURE,
            6,
        ),
        Panel(
            "Balancedness by layer",
            "The worst layers are worth a look on the heat map.",
            "percentunit",
            (Query("expertmesh_layer_balancedness", "layer {{layer}}"),),
            most=1.0,
        ),
        Panel(
            "Load of the hottest expert over the layer's mean",
            "Large numbers call for replicas.",
            "short",
            (Query("expertmesh_layer_expert_peak", "layer {{layer}}"),),
        ),
        Panel(
            "Load by shard",
            "Assignments per second.",
            "short",
            (
                Query(
                    f"rate(expertmesh_shard_assignments_total[{_WINDOW}])", "{{shard}} ({{pool}})"
                ),
            ),
        ),
        Panel(
            "Load by layer",
            "Assignments per second.",
            "short",
            (Query(f"rate(expertmesh_layer_assignments_total[{_WINDOW}])", "layer {{layer}}"),),
        ),
        Panel(
            "Hot experts, by rank",
            "Part of their layers' load. Labels are ranks, so the series stay the same ones.",
            "percentunit",
            (Query("expertmesh_hot_expert_share", "rank {{rank}}"),),
            width=24,
        ),
    ),
)

DEVICES = Board(
    "expertmesh-devices",
    "ExpertMesh: shards and devices",
    "Who is up, how busy, how full.",
    (
        Panel(
            "Components",
            "Processes of the mesh by state.",
            "none",
            (Query("expertmesh_components", "{{kind}} {{state}}"),),
            Look.BARS,
        ),
        Panel(
            "Shards ready",
            "1 while a shard is ready.",
            "none",
            (Query("expertmesh_shard_up", "{{shard}}"),),
            Look.BARS,
        ),
        Panel(
            "Kernels busy",
            "Part of the time that a shard's kernel runs.",
            "percentunit",
            (Query(f"rate(expertmesh_shard_busy_seconds_total[{_WINDOW}])", "{{shard}}"),),
            most=1.0,
        ),
        Panel(
            "Mean time of a kernel call",
            "Of merged requests.",
            "s",
            (
                Query(
                    f"rate(expertmesh_shard_busy_seconds_total[{_WINDOW}]) / "
                    f"rate(expertmesh_shard_calls_total[{_WINDOW}])",
                    "{{shard}}",
                ),
            ),
        ),
        Panel(
            "Expert weights",
            "Memory that the held experts take.",
            "bytes",
            (Query("expertmesh_shard_memory_bytes", "{{shard}}"),),
        ),
        Panel(
            "Copies of experts by pool",
            "With replicas.",
            "none",
            (Query("expertmesh_pool_slots", "{{pool}}"),),
        ),
        Panel(
            "Speed that plans count on",
            "Relative, by pool.",
            "none",
            (Query("expertmesh_pool_speed", "{{pool}}"),),
        ),
        Panel(
            "Failed kernel calls",
            "Their rows went to other replicas.",
            "cps",
            (Query(f"rate(expertmesh_shard_failed_calls_total[{_WINDOW}])", "{{shard}}"),),
        ),
        Panel(
            "Age of what is shown",
            "Grows while the controller is away.",
            "s",
            (
                Query("expertmesh_snapshot_age_seconds", "snapshot"),
                Query("expertmesh_controller_silence_seconds", "controller silent"),
            ),
        ),
        Panel(
            "Ready",
            "1 while a completion would succeed.",
            "none",
            (Query("expertmesh_ready"),),
            most=1.0,
        ),
    ),
)

DISPATCH = Board(
    "expertmesh-dispatch",
    "ExpertMesh: calls of experts",
    "What the dispatchers in engines and routers see of the shards.",
    (
        Panel(
            "Calls",
            "Of an MoE layer of one batch, over all dispatchers.",
            "ops",
            (Query(f"rate(expertmesh_dispatch_calls_total[{_WINDOW}])", "calls/s"),),
        ),
        Panel(
            "Time until a call's answers are added up",
            "From when the engine asks for them.",
            "s",
            tuple(
                Query(_quantile(q, "expertmesh_dispatch_wait_seconds"), f"p{q:.0%}")
                for q in (0.5, 0.9, 0.99)
            ),
        ),
        Panel(
            "Time to split and post a call",
            "The dispatcher's own work before shards begin.",
            "s",
            tuple(
                Query(_quantile(q, "expertmesh_dispatch_send_seconds"), f"p{q:.0%}")
                for q in (0.5, 0.9, 0.99)
            ),
        ),
        Panel(
            "Late, refused, lost",
            "Missed soft deadlines, refused parts of calls, lost links.",
            "none",
            tuple(
                Query(f"increase(expertmesh_dispatch_{name}_total[5m])", f"{word} in 5 min")
                for name, word in (("late", "late"), ("refused", "refused"), ("lost_links", "lost"))
            ),
        ),
        Panel(
            "Sent again",
            "Parts of calls that went to another shard too.",
            "none",
            (Query("increase(expertmesh_dispatch_resent_total[5m])", "in 5 min"),),
        ),
        Panel(
            "Calls that nobody could take",
            "They wait for a replica, and fail after `router.expert_wait_s`.",
            "none",
            (
                Query("increase(expertmesh_dispatch_starved_total[5m])", "waited in 5 min"),
                Query("increase(expertmesh_dispatch_failed_total[5m])", "failed in 5 min"),
            ),
        ),
    ),
)

PLACEMENT = Board(
    "expertmesh-placement",
    "ExpertMesh: placement and rebalancing",
    "Who has copies, what moves, what it is for.",
    (
        Panel(
            "Experts by number of copies",
            "0 copies: requests that choose these experts wait, then fail.",
            "none",
            (Query("expertmesh_experts_replicas", "{{copies}} copies"),),
            Look.BARS,
        ),
        Panel(
            "Changes of placement",
            "Begun within the window: placements, rebalances, repairs.",
            "none",
            (Query("increase(expertmesh_transactions_total[10m])", "in 10 min"),),
        ),
        Panel(
            "Time in the present phase",
            "Of the change under way; 0 without one.",
            "s",
            (Query("expertmesh_transaction_phase_seconds", "phase"),),
        ),
        Panel(
            "Bytes of the change under way",
            "What it loads in all.",
            "bytes",
            (Query("expertmesh_transaction_bytes", "bytes"),),
        ),
        Panel(
            "Predicted gain and balancedness",
            "What a change is to save, and what became of it.",
            "percentunit",
            (
                Query("expertmesh_transaction_predicted_gain", "predicted gain"),
                Query("expertmesh_balancedness", "balancedness"),
            ),
            most=1.0,
        ),
        Panel(
            "Plan epoch",
            "Each step is a placement that dispatchers follow.",
            "none",
            (Query("expertmesh_epoch", "epoch"),),
        ),
        Panel(
            "Dispatchers",
            "Those that follow the current epoch, and those that do not yet.",
            "none",
            (Query("expertmesh_dispatchers", "follows: {{follows}}"),),
        ),
        Panel(
            "Problems",
            "What the control plane cannot put right now; the page says why.",
            "none",
            (Query("expertmesh_problems", "problems"),),
        ),
    ),
)

BATCH = Board(
    "expertmesh-batch",
    "ExpertMesh: batch jobs",
    "What is owed, how quickly it is done, what stands in its way.",
    (
        Panel(
            "Requests open",
            "Of unfinished jobs, without an answer.",
            "none",
            (Query("expertmesh_batch_requests_open"),),
            Look.FIGURE,
            6,
        ),
        Panel(
            "Least time left",
            "Until the window of an unfinished job ends.",
            "s",
            (Query("expertmesh_batch_least_time_left_seconds"),),
            Look.FIGURE,
            6,
        ),
        Panel(
            "Paused jobs",
            "None of their requests is begun.",
            "none",
            (Query("expertmesh_batch_jobs_paused"),),
            Look.FIGURE,
            6,
        ),
        Panel(
            "Runner silent for",
            "Time since it last wrote to the ledger.",
            "s",
            (Query("expertmesh_batch_runner_silence_seconds"),),
            Look.FIGURE,
            6,
        ),
        Panel(
            "Requests answered",
            "Failed ones are in the job's error file.",
            "reqps",
            (
                Query(
                    f"sum by (result) (rate(expertmesh_batch_requests_total[{_WINDOW}]))",
                    "{{result}}",
                ),
            ),
        ),
        Panel(
            "Tokens",
            "Of answered requests.",
            "short",
            (
                Query(
                    f"sum by (kind) (rate(expertmesh_batch_tokens_total[{_WINDOW}]))",
                    "{{kind}}",
                ),
            ),
        ),
        Panel(
            "Jobs by state",
            "All that the ledger knows.",
            "none",
            (Query("expertmesh_batch_jobs", "{{state}}"),),
            Look.BARS,
        ),
        Panel(
            "Computed again",
            "Requests whose runner or engine was lost; each is answered once all the same.",
            "none",
            (Query("increase(expertmesh_batch_recomputed_total[10m])", "in 10 min"),),
        ),
    ),
)

BOARDS = (SERVING, EXPERTS, PLACEMENT, DEVICES, DISPATCH, BATCH)
