"""Batch jobs in figures, as metrics, page and `top` show them. Whose they are is not told."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from orchestrator.batch.ledger import Ledger
from orchestrator.batch.records import JobRecord, JobSum
from orchestrator.batch.states import FINISHED

MOST_JOBS = 50
"""Unfinished jobs that are shown one by one, the oldest."""


@dataclass(frozen=True, slots=True)
class JobFigures:
    """One unfinished job. waiting_for: why nothing of it is begun now. left_s: of its window."""

    id: str
    state: str
    total: int
    completed: int
    failed: int
    priority: int
    paused: bool
    waiting_for: str
    left_s: float


@dataclass(frozen=True, slots=True)
class BatchFigures:
    """jobs: how many in each state. The other numbers are of the ledger's whole life, but open:
    requests of unfinished jobs without an answer. runner_silence_s: since the runner last wrote."""

    jobs: Mapping[str, int] = field(default_factory=dict)
    completed: int = 0
    failed: int = 0
    recomputed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    open: int = 0
    paused: int = 0
    unfinished: Sequence[JobFigures] = ()
    runner_silence_s: float = 0.0


def read_ledger(ledger: Ledger, now_s: float) -> BatchFigures:
    """Blocks, as the ledger does. now_s: Unix time."""
    seen_s = ledger.requests.runner_seen_at()
    return figures(ledger.jobs.sums(), ledger.jobs.unfinished(), seen_s, now_s)


def figures(
    sums: Sequence[JobSum], unfinished: Sequence[JobRecord], runner_seen_s: float, now_s: float
) -> BatchFigures:
    """runner_seen_s: Unix time, 0 where there was none yet."""
    return BatchFigures(
        jobs={found.state.value: found.jobs for found in sums},
        completed=sum(found.completed for found in sums),
        failed=sum(found.failed for found in sums),
        recomputed=sum(found.recomputed for found in sums),
        prompt_tokens=sum(found.prompt_tokens for found in sums),
        completion_tokens=sum(found.completion_tokens for found in sums),
        open=sum(
            found.total - found.completed - found.failed
            for found in sums
            if found.state not in FINISHED
        ),
        paused=sum(job.paused for job in unfinished),
        unfinished=[_of_job(job, now_s) for job in unfinished[:MOST_JOBS]],
        runner_silence_s=max(0.0, now_s - runner_seen_s) if runner_seen_s else 0.0,
    )


def _of_job(job: JobRecord, now_s: float) -> JobFigures:
    return JobFigures(
        job.id,
        job.status.value,
        job.total,
        job.completed,
        job.failed,
        job.priority,
        job.paused,
        job.pause_reason,
        round(job.expires_at - now_s, 1),
    )
