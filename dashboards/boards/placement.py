"""Who has copies of experts, what moves, what it is for."""

from dashboards.panels import Board, Look, Panel, Query

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
