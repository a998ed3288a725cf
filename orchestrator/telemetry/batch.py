"""Batch jobs as metrics."""

from prometheus_client.core import Metric as Family

from orchestrator.batch.figures import BatchFigures
from orchestrator.telemetry.families import family


def batch_families(known: BatchFigures) -> list[Family]:
    """Everything of the table's BATCH."""
    return [
        family("expertmesh_batch_jobs", (((state,), n) for state, n in known.jobs.items())),
        family("expertmesh_batch_jobs_paused", [((), known.paused)]),
        family("expertmesh_batch_requests_open", [((), known.open)]),
        family(
            "expertmesh_batch_requests_total",
            [(("completed",), known.completed), (("failed",), known.failed)],
        ),
        family("expertmesh_batch_recomputed_total", [((), known.recomputed)]),
        family(
            "expertmesh_batch_tokens_total",
            [(("prompt",), known.prompt_tokens), (("completion",), known.completion_tokens)],
        ),
        family("expertmesh_batch_runner_silence_seconds", [((), known.runner_silence_s)]),
        family(
            "expertmesh_batch_least_time_left_seconds",
            [((), min(job.left_s for job in known.unfinished))] if known.unfinished else [],
        ),
    ]
