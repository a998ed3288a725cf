"""How evenly the experts' work is spread."""

from dashboards.panels import WINDOW, Board, Look, Panel, Query

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
            (Query(f"sum(rate(expertmesh_shard_assignments_total[{WINDOW}]))"),),
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
            (Query(f"rate(expertmesh_shard_assignments_total[{WINDOW}])", "{{shard}} ({{pool}})"),),
        ),
        Panel(
            "Load by layer",
            "Assignments per second.",
            "short",
            (Query(f"rate(expertmesh_layer_assignments_total[{WINDOW}])", "layer {{layer}}"),),
        ),
        Panel(
            "Tokens by kind of traffic",
            "Per second, estimated from some of the engines' steps.",
            "short",
            (
                Query(
                    f"sum by (traffic, content) (rate(expertmesh_traffic_tokens_total[{WINDOW}]))",
                    "{{traffic}} ({{content}})",
                ),
            ),
            width=24,
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
