"""What holds jobs back."""

import shutil
from datetime import datetime
from pathlib import Path

from orchestrator.batch.records import JobRecord
from orchestrator.batch.states import JobState
from orchestrator.config.bytesize import format_bytes
from orchestrator.config.times import Hours


def hold_back(job: JobRecord, run_between: str | None, now_s: float) -> str:
    """Why nothing of a job in progress is begun now; empty if it is.

    run_between: hours of jobs that name none.
    """
    if job.status is not JobState.IN_PROGRESS:
        return job.status
    if job.paused:
        return job.pause_reason or "paused"
    between = job.run_between or run_between
    if between and not Hours.parse(between).contain(datetime.fromtimestamp(now_s)):
        return f"waits for its hours, {between}"
    return ""


def disk_trouble(folder: Path, least: int) -> str:
    """Why nothing is begun while the disk has less than `least` bytes; empty if it has more."""
    free = shutil.disk_usage(folder).free
    if free >= least:
        return ""
    return (
        f"the disk is nearly full: {format_bytes(free)} free, batch.min_free_disk asks for "
        f"{format_bytes(least)}"
    )
