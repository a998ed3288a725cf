"""A job that the runner works on."""

import asyncio
from dataclasses import dataclass
from pathlib import Path

from actors.traffic import BATCH, is_kind
from orchestrator.batch.records import JobRecord

KIND = "traffic"
"""Key of a job's metadata that names the kind of traffic its requests are."""


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

    @property
    def traffic(self) -> str:
        """The kind of traffic that its requests are, see `KIND`."""
        named = self.record.metadata.get(KIND, "")
        return named if is_kind(named) else BATCH
