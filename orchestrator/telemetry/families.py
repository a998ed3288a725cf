"""A snapshot as metric families: one form, from which Prometheus's pages and OTLP are made.

They are families of `prometheus_client`, filled here instead of by counting, because what they show
was counted in other processes. Every name comes from the table.
"""

import math
from collections import Counter
from collections.abc import Iterable

from prometheus_client.core import Metric as Family

from orchestrator.api.models import ClusterView
from orchestrator.status import ComponentState, ComponentStatus
from orchestrator.telemetry.snapshot import (
    Snapshot,
    balancedness,
    expert_peak,
    hottest,
    overall_balancedness,
    replica_histogram,
)
from orchestrator.telemetry.table import BY_NAME, Kind

Values = Iterable[tuple[tuple[str, ...], float]]
"""(label values in the table's order, value) of each sample."""


def family(name: str, values: Values) -> Family:
    """The family `name` of the table; samples that are no number are left out."""
    metric = BY_NAME[name]
    counter = metric.kind is Kind.COUNTER
    made = Family(name.removesuffix("_total") if counter else name, metric.help, metric.kind.value)
    for labels, value in values:
        if not math.isnan(value):
            made.add_sample(name, dict(zip(metric.labels, labels, strict=True)), value)
    return made


def families_of(snapshot: Snapshot, age_s: float, silence_s: float, hot: int) -> list[Family]:
    """Everything of the table's MESH that the snapshot tells. hot: ranks to show."""
    mesh = snapshot.mesh
    kinds = Counter((c.kind.value, c.state.value) for c in mesh.components)
    return [
        family("expertmesh_snapshot_age_seconds", [((), age_s)]),
        family("expertmesh_controller_silence_seconds", [((), silence_s)]),
        family("expertmesh_ready", [((), float(mesh.ready))]),
        family("expertmesh_epoch", [((), mesh.epoch)]),
        family("expertmesh_components", kinds.items()),
        *_of_shards(snapshot),
        *_of_pools(snapshot.shards),
        *_of_layers(snapshot),
        _of_traffic(snapshot),
        *_of_hot_experts(snapshot, hot),
        *_of_replicas(snapshot),
        *_of_control(snapshot.control),
    ]


def _of_shards(snapshot: Snapshot) -> list[Family]:
    def each(name: str, value_of: dict[str, float | None]) -> Family:
        values = (
            ((s.id, s.pool or ""), value)
            for s in snapshot.shards
            if (value := value_of.get(s.id)) is not None
        )
        return family(f"expertmesh_shard_{name}", values)

    shards = snapshot.shards
    done = {id: float(counts.sum()) for id, counts in snapshot.totals.by_shard.items()}
    return [
        each("up", {s.id: float(s.state is ComponentState.READY) for s in shards}),
        each("assignments_total", {**done}),
        each("busy_seconds_total", {s.id: s.busy_s for s in shards}),
        each("calls_total", {s.id: s.calls for s in shards}),
        each("failed_calls_total", {s.id: s.failed_calls for s in shards}),
        each("memory_bytes", {s.id: s.memory_bytes for s in shards}),
    ]


def _of_pools(shards: list[ComponentStatus]) -> list[Family]:
    pools = sorted({shard.pool or "" for shard in shards})
    slots, speeds = [], []
    for pool in pools:
        inside = [shard for shard in shards if (shard.pool or "") == pool]
        known = [shard.speed for shard in inside if shard.speed is not None]
        slots.append(((pool,), float(sum(shard.slots or 0 for shard in inside))))
        if known:
            speeds.append(((pool,), sum(known) / len(known)))
    return [family("expertmesh_pool_slots", slots), family("expertmesh_pool_speed", speeds)]


def _of_layers(snapshot: Snapshot) -> list[Family]:
    totals, window = snapshot.totals, snapshot.window
    layers = [(str(layer),) for layer in totals.layers]
    made = [
        family(
            "expertmesh_layer_assignments_total",
            zip(layers, map(float, totals.counts.sum(axis=1)), strict=True),
        )
    ]
    if window is not None:
        speeds = snapshot.speeds
        made += [
            family(
                "expertmesh_layer_balancedness",
                zip(layers, map(float, balancedness(window, speeds)), strict=True),
            ),
            family(
                "expertmesh_layer_expert_peak",
                zip(layers, map(float, expert_peak(window.counts)), strict=True),
            ),
            family("expertmesh_balancedness", [((), overall_balancedness(window, speeds))]),
        ]
    return made


def _of_traffic(snapshot: Snapshot) -> Family:
    told = [((t.kind, t.content), float(t.tokens)) for t in snapshot.traffic]
    return family("expertmesh_traffic_tokens_total", told)


def _of_hot_experts(snapshot: Snapshot, most: int) -> list[Family]:
    window = snapshot.window
    hot = hottest(window.counts, snapshot.totals.layers, most) if window is not None else []
    if not hot:
        return []
    ranked = [((str(rank),), expert) for rank, expert in enumerate(hot, 1)]
    return [
        family("expertmesh_hot_expert_layer", ((rank, e.layer) for rank, e in ranked)),
        family("expertmesh_hot_expert_number", ((rank, e.expert) for rank, e in ranked)),
        family("expertmesh_hot_expert_share", ((rank, e.share) for rank, e in ranked)),
    ]


def _of_control(view: ClusterView | None) -> list[Family]:
    if view is None:
        return []
    change = view.transaction
    follow = sum(follower.adopted == view.epoch for follower in view.dispatchers)
    running = [((change.kind, change.phase), 1.0)] if change else []
    return [
        family("expertmesh_transactions_total", [((), view.transactions)]),
        family("expertmesh_transaction_running", running),
        family("expertmesh_transaction_phase_seconds", [((), change.phase_s if change else 0)]),
        family("expertmesh_transaction_bytes", [((), change.bytes if change else 0)]),
        family("expertmesh_transaction_predicted_gain", [((), change.gain if change else 0)]),
        family(
            "expertmesh_dispatchers",
            [(("yes",), follow), (("no",), len(view.dispatchers) - follow)],
        ),
        family("expertmesh_problems", [((), len(view.problems))]),
    ]


def _of_replicas(snapshot: Snapshot) -> list[Family]:
    if snapshot.replicas is None:
        return []
    numbers = replica_histogram(snapshot.replicas)
    names = [*map(str, range(len(numbers) - 1)), f"{len(numbers) - 1}+"]
    return [
        family(
            "expertmesh_experts_replicas",
            (((name,), float(n)) for name, n in zip(names, numbers, strict=True)),
        )
    ]
