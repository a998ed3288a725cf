"""What the dispatchers in engines and routers see of the shards."""

from dashboards.panels import WINDOW, Board, Panel, Query, quantiles

DISPATCH = Board(
    "expertmesh-dispatch",
    "ExpertMesh: calls of experts",
    "What the dispatchers in engines and routers see of the shards.",
    (
        Panel(
            "Calls",
            "Of an MoE layer of one batch, over all dispatchers.",
            "ops",
            (Query(f"rate(expertmesh_dispatch_calls_total[{WINDOW}])", "calls/s"),),
        ),
        Panel(
            "Time until a call's answers are added up",
            "From when the engine asks for them.",
            "s",
            quantiles("expertmesh_dispatch_wait_seconds"),
        ),
        Panel(
            "Time of the slowest shard",
            "That a call's slowest shard computed for; the rest of the wait is the way.",
            "s",
            quantiles("expertmesh_dispatch_service_seconds"),
        ),
        Panel(
            "Time to split and post a call",
            "The dispatcher's own work before shards begin.",
            "s",
            quantiles("expertmesh_dispatch_send_seconds"),
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
