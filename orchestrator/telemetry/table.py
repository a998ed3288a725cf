"""Every metric of the mesh's own, in one table: `/metrics`, OTLP, dashboards, alerts and the
documentation follow it, and tests compare them with it.

The number of series is bounded whatever the traffic does. Labels are shards, pools, layers, and
ranks among the hottest experts; never an expert's number, a request or an address. The matrix of
layers and experts goes over the API as an array (`matrix.py`).
"""

from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """How a metric's values go on."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Metric:
    """name: as Prometheus shows it. unit: of the values, "1" for plain numbers. labels: without
    those that every sample of the gateway's own metrics has."""

    name: str
    kind: Kind
    unit: str
    labels: tuple[str, ...]
    help: str


_SHARD = ("shard", "pool")
_C, _G, _H = Kind.COUNTER, Kind.GAUGE, Kind.HISTOGRAM

GATEWAY = (
    Metric(
        "expertmesh_gateway_requests_total",
        _C,
        "1",
        ("model_name", "path", "code"),
        "Requests answered; code 499 is a client that left early.",
    ),
    Metric(
        "expertmesh_gateway_request_duration_seconds",
        _H,
        "s",
        ("model_name", "path"),
        "From the request's arrival to its last byte.",
    ),
    Metric(
        "expertmesh_gateway_time_to_first_byte_seconds",
        _H,
        "s",
        ("model_name", "path"),
        "From the request's arrival to its first byte.",
    ),
    Metric(
        "expertmesh_gateway_requests_in_flight",
        _G,
        "1",
        ("model_name",),
        "Requests not answered in full yet.",
    ),
    Metric(
        "expertmesh_gateway_engines_ready", _G, "1", ("model_name",), "Engines that take requests."
    ),
    Metric(
        "expertmesh_gateway_retries_total",
        _C,
        "1",
        ("model_name",),
        "Requests sent to another engine from their start after one was lost.",
    ),
    Metric(
        "expertmesh_gateway_continued_total",
        _C,
        "1",
        ("model_name",),
        "Requests that another engine continued after one was lost.",
    ),
    Metric(
        "expertmesh_gateway_streams_cut_total",
        _C,
        "1",
        ("model_name",),
        "Streams that ended in an error as their engine was lost.",
    ),
    Metric(
        "expertmesh_gateway_traffic_requests_total",
        _C,
        "1",
        ("model_name", "traffic"),
        "Requests handed to engines, by kind of traffic.",
    ),
)
"""Counted in the gateway itself."""

MESH = (
    Metric(
        "expertmesh_snapshot_age_seconds",
        _G,
        "s",
        (),
        "Age of what is shown of the mesh; grows while the controller is away.",
    ),
    Metric(
        "expertmesh_controller_silence_seconds",
        _G,
        "s",
        (),
        "Time since the controller last answered the gateway.",
    ),
    Metric("expertmesh_ready", _G, "1", (), "1 while a completion would succeed, else 0."),
    Metric("expertmesh_epoch", _G, "1", (), "Number of the plan epoch being served."),
    Metric(
        "expertmesh_components",
        _G,
        "1",
        ("kind", "state"),
        "Processes of the mesh by what they do and how they are.",
    ),
    Metric("expertmesh_shard_up", _G, "1", _SHARD, "1 while the shard is ready, else 0."),
    Metric(
        "expertmesh_shard_assignments_total",
        _C,
        "1",
        _SHARD,
        "Assignments (a row and one of its experts) that the shard computed.",
    ),
    Metric(
        "expertmesh_shard_busy_seconds_total",
        _C,
        "s",
        _SHARD,
        "Time that the shard's kernel ran for.",
    ),
    Metric("expertmesh_shard_calls_total", _C, "1", _SHARD, "Kernel calls, of merged requests."),
    Metric(
        "expertmesh_shard_failed_calls_total",
        _C,
        "1",
        _SHARD,
        "Calls answered with an error because the kernel failed.",
    ),
    Metric(
        "expertmesh_shard_memory_bytes", _G, "By", _SHARD, "Expert weights that the shard holds."
    ),
    Metric(
        "expertmesh_pool_slots", _G, "1", ("pool",), "Copies of experts that a pool's shards hold."
    ),
    Metric(
        "expertmesh_pool_speed",
        _G,
        "1",
        ("pool",),
        "Relative speed of a pool's shards that plans count on, on average.",
    ),
    Metric(
        "expertmesh_layer_assignments_total",
        _C,
        "1",
        ("layer",),
        "Assignments of a layer's experts.",
    ),
    Metric(
        "expertmesh_layer_balancedness",
        _G,
        "1",
        ("layer",),
        "Mean over largest load of the shards in a layer, each divided by its shard's speed, in "
        "the last window with traffic; 1 is even.",
    ),
    Metric(
        "expertmesh_layer_expert_peak",
        _G,
        "1",
        ("layer",),
        "Load of a layer's hottest expert over the layer's mean, in the last window with traffic.",
    ),
    Metric(
        "expertmesh_balancedness",
        _G,
        "1",
        (),
        "Balancedness over all layers, weighed by their load.",
    ),
    Metric(
        "expertmesh_traffic_tokens_total",
        _C,
        "1",
        ("traffic", "content"),
        "Tokens computed by kind of traffic and content (text, image, ...), estimated from some of "
        "the engines' steps, since the controller began.",
    ),
    Metric(
        "expertmesh_hot_expert_layer", _G, "1", ("rank",), "Layer of the hottest experts, by rank."
    ),
    Metric(
        "expertmesh_hot_expert_number",
        _G,
        "1",
        ("rank",),
        "Number in its layer of the hottest experts, by rank.",
    ),
    Metric(
        "expertmesh_hot_expert_share",
        _G,
        "1",
        ("rank",),
        "Part of its layer's load that the hottest experts got, by rank.",
    ),
    Metric(
        "expertmesh_experts_replicas",
        _G,
        "1",
        ("copies",),
        "Experts of all layers with 0, 1, 2, 3, or 4 and more copies.",
    ),
    Metric(
        "expertmesh_transactions_total",
        _C,
        "1",
        (),
        "Changes of placement that were begun; their number, kept over restarts.",
    ),
    Metric(
        "expertmesh_transaction_running",
        _G,
        "1",
        ("kind", "phase"),
        "1 for the change of placement under way; no series without one.",
    ),
    Metric(
        "expertmesh_transaction_phase_seconds",
        _G,
        "s",
        (),
        "How long the change under way has been in its phase; 0 without one.",
    ),
    Metric(
        "expertmesh_transaction_bytes",
        _G,
        "By",
        (),
        "What the change under way loads in all; 0 without one.",
    ),
    Metric(
        "expertmesh_transaction_predicted_gain",
        _G,
        "1",
        (),
        "Part of the experts' time that the change under way is predicted to save; 0 without one.",
    ),
    Metric(
        "expertmesh_dispatchers",
        _G,
        "1",
        ("follows",),
        "Dispatchers that follow the current epoch (yes) and that do not yet (no).",
    ),
    Metric(
        "expertmesh_problems",
        _G,
        "1",
        (),
        "What the control plane cannot put right now; the page and the status API say why.",
    ),
)
"""From the controller, shards and engines, as the gateway last saw them."""

DISPATCH = (
    Metric(
        "expertmesh_dispatch_calls_total", _C, "1", (), "Calls of an MoE layer that were answered."
    ),
    Metric(
        "expertmesh_dispatch_failed_total",
        _C,
        "1",
        (),
        "Calls that ended in an error, as nobody held an expert for too long.",
    ),
    Metric(
        "expertmesh_dispatch_starved_total",
        _C,
        "1",
        (),
        "Calls that waited because no shard could take some rows.",
    ),
    Metric(
        "expertmesh_dispatch_resent_total",
        _C,
        "1",
        (),
        "Parts of calls that went to another shard too, as the first was late, lost or refused.",
    ),
    Metric(
        "expertmesh_dispatch_late_total",
        _C,
        "1",
        (),
        "Times that a shard missed the soft deadline of a dispatcher.",
    ),
    Metric(
        "expertmesh_dispatch_refused_total", _C, "1", (), "Parts of calls that a shard refused."
    ),
    Metric(
        "expertmesh_dispatch_lost_links_total",
        _C,
        "1",
        (),
        "Links between a dispatcher and a shard that were lost.",
    ),
    Metric(
        "expertmesh_dispatch_send_seconds",
        _H,
        "s",
        (),
        "Time to split a call over shards and to post it.",
    ),
    Metric(
        "expertmesh_dispatch_wait_seconds",
        _H,
        "s",
        (),
        "Time until a call's answers were added up, from when the engine asked for them.",
    ),
    Metric(
        "expertmesh_dispatch_service_seconds",
        _H,
        "s",
        (),
        "Time that the slowest of a call's shards computed for.",
    ),
)
"""From the dispatchers, over all of them."""

BATCH = (
    Metric("expertmesh_batch_jobs", _G, "1", ("state",), "Batch jobs in each state."),
    Metric(
        "expertmesh_batch_jobs_paused",
        _G,
        "1",
        (),
        "Unfinished batch jobs that were paused; none of their requests is begun.",
    ),
    Metric(
        "expertmesh_batch_requests_open",
        _G,
        "1",
        (),
        "Requests of unfinished batch jobs that have no answer yet.",
    ),
    Metric(
        "expertmesh_batch_requests_total",
        _C,
        "1",
        ("result",),
        "Requests of batch jobs that were answered (completed) or given up (failed).",
    ),
    Metric(
        "expertmesh_batch_recomputed_total",
        _C,
        "1",
        (),
        "Requests of batch jobs that were computed again, as a runner or an engine was lost.",
    ),
    Metric(
        "expertmesh_batch_tokens_total",
        _C,
        "1",
        ("kind",),
        "Tokens of answered requests of batch jobs: prompt and completion.",
    ),
    Metric(
        "expertmesh_batch_runner_silence_seconds",
        _G,
        "s",
        (),
        "Time since the batch runner last wrote to the ledger; 0 before it ever did.",
    ),
    Metric(
        "expertmesh_batch_least_time_left_seconds",
        _G,
        "s",
        (),
        "Until the window of an unfinished batch job ends, the least; no series without one.",
    ),
)
"""From the ledger, where there are batch jobs."""

METRICS = (*GATEWAY, *MESH, *DISPATCH, *BATCH)
BY_NAME = {metric.name: metric for metric in METRICS}
