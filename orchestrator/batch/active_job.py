"""A job that the runner works on."""

import asyncio
from dataclasses import dataclass
from pathlib import Path

from orchestrator.batch.records import JobRecord


@dataclass(slots=True)
class ActiveJob:
    """record: as the ledger had it at the last look. suspects: those of its requests that engines
    were lost with."""

    record: JobRecord
    path: Path | None = None
    in_flight: int = 0
    dry_until_s: float = 0.0
    suspects: int = 0
    work: asyncio.Task[None] | None = None
    """Its validation or finalization."""
