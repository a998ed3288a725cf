"""The ledger: what is asked for, what is answered, whatever crashes in between."""

from dataclasses import dataclass

from orchestrator.batch.database import Database
from orchestrator.batch.file_rows import FileRows
from orchestrator.batch.job_rows import JobRows
from orchestrator.batch.request_rows import RequestRows


@dataclass(frozen=True, slots=True)
class Ledger:
    """Everything in one database; methods block, so call them in a thread."""

    database: Database
    files: FileRows
    jobs: JobRows
    requests: RequestRows


def open_ledger(url: str, durable: bool = True) -> Ledger:
    """Raises `UserError` (see `Database`)."""
    database = Database(url, durable)
    return Ledger(database, FileRows(database), JobRows(database), RequestRows(database))
