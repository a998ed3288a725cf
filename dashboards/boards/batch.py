"""What batch jobs are owed, how quickly it is done, what stands in its way."""

from dashboards.panels import WINDOW, Board, Look, Panel, Query

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
                    f"sum by (result) (rate(expertmesh_batch_requests_total[{WINDOW}]))",
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
                    f"sum by (kind) (rate(expertmesh_batch_tokens_total[{WINDOW}]))",
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
