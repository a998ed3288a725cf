"""What clients get: rates, latencies, queues."""

from dashboards.panels import WINDOW, Board, Look, Panel, Query, quantiles

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
            (Query(f"sum(rate(vllm:generation_tokens_total[{WINDOW}]))"),),
            Look.FIGURE,
            6,
        ),
        Panel(
            "Answers with an error",
            "Part of the answers with status 500 and above.",
            "percentunit",
            (
                Query(
                    f'(sum(rate(expertmesh_gateway_requests_total{{code=~"5.."}}[{WINDOW}])) or '
                    f"vector(0)) / sum(rate(expertmesh_gateway_requests_total[{WINDOW}]))"
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
                    f"sum by (path, code) (rate(expertmesh_gateway_requests_total[{WINDOW}]))",
                    "{{path}} {{code}}",
                ),
            ),
        ),
        Panel(
            "Time to first byte",
            "From a request's arrival at the gateway.",
            "s",
            quantiles("expertmesh_gateway_time_to_first_byte_seconds"),
        ),
        Panel(
            "Whole requests",
            "From a request's arrival at the gateway to its last byte.",
            "s",
            quantiles("expertmesh_gateway_request_duration_seconds"),
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
                Query(f"rate(expertmesh_gateway_retries_total[{WINDOW}])", "sent again"),
                Query(f"rate(expertmesh_gateway_continued_total[{WINDOW}])", "continued"),
                Query(f"rate(expertmesh_gateway_streams_cut_total[{WINDOW}])", "streams cut"),
            ),
        ),
    ),
)
