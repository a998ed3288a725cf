"""Shards and devices: who is up, how busy, how full."""

from dashboards.panels import WINDOW, Board, Look, Panel, Query

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
            (Query(f"rate(expertmesh_shard_busy_seconds_total[{WINDOW}])", "{{shard}}"),),
            most=1.0,
        ),
        Panel(
            "Mean time of a kernel call",
            "Of merged requests.",
            "s",
            (
                Query(
                    f"rate(expertmesh_shard_busy_seconds_total[{WINDOW}]) / "
                    f"rate(expertmesh_shard_calls_total[{WINDOW}])",
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
            (Query(f"rate(expertmesh_shard_failed_calls_total[{WINDOW}])", "{{shard}}"),),
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
