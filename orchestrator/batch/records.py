"""Rows of the ledger as the rest of the code sees them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from sqlalchemy import Row

from orchestrator.batch.states import JobState


@dataclass(frozen=True, slots=True)
class FileRecord:
    """A file that somebody uploaded, or that a job wrote. digest: SHA-256 of its bytes."""

    id: str
    owner: str
    filename: str
    purpose: str
    bytes: int
    digest: str
    created_at: float
    expires_at: float | None = None

    @classmethod
    def from_row(cls, row: Row[Any]) -> Self:
        return cls(**{name: row._mapping[name] for name in cls.__slots__})


@dataclass(frozen=True, slots=True)
class LineError:
    """What is wrong with one line of an input file (None: with the file)."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None

    def to_json(self) -> dict[str, object]:
        return {
            "code": self.code,
            "line": self.line,
            "message": self.message,
            "param": self.param,
        }


@dataclass(frozen=True, slots=True)
class NewJob:
    """What a client asks for."""

    owner: str
    endpoint: str
    input_file: str
    completion_window: str
    window_s: float
    metadata: Mapping[str, str]
    priority: int = 0
    run_between: str | None = None


@dataclass(frozen=True, slots=True)
class JobRecord:
    """A job. `tables.jobs` says what the fields are."""

    seq: int
    id: str
    owner: str
    endpoint: str
    input_file: str
    output_file: str | None
    error_file: str | None
    completion_window: str
    metadata: Mapping[str, str]
    errors: tuple[LineError, ...]
    status: JobState
    outcome: str
    priority: int
    run_between: str | None
    paused: bool
    pause_reason: str
    created_at: float
    expires_at: float
    in_progress_at: float | None
    finalizing_at: float | None
    completed_at: float | None
    failed_at: float | None
    expired_at: float | None
    cancelling_at: float | None
    cancelled_at: float | None
    total: int
    completed: int
    failed: int
    recomputed: int
    prompt_tokens: int
    completion_tokens: int
    checked_lines: int
    checked_bytes: int

    @classmethod
    def from_row(cls, row: Row[Any]) -> Self:
        values = {name: row._mapping[name] for name in cls.__slots__}
        values["metadata"] = json.loads(values["metadata"])
        values["errors"] = tuple(LineError(**error) for error in json.loads(values["errors"]))
        values["status"] = JobState(values["status"])
        return cls(**values)

    @property
    def open(self) -> int:
        """Requests that are not answered yet."""
        return self.total - self.completed - self.failed


@dataclass(frozen=True, slots=True)
class JobSum:
    """All jobs in one state. jobs: how many; the rest: of their requests."""

    state: JobState
    jobs: int
    total: int
    completed: int
    failed: int
    recomputed: int
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class NewRequest:
    """A line that validation found well. offset, length: its bytes in the input file."""

    line: int
    custom_id: str
    offset: int
    length: int
    prefix: bytes


@dataclass(frozen=True, slots=True)
class Leased:
    """A request that this runner computes. attempts, engines_lost: what it has behind it."""

    job: int
    line: int
    custom_id: str
    offset: int
    length: int
    attempts: int
    engines_lost: int


@dataclass(frozen=True, slots=True)
class Settled:
    """The answer of a request: `ok` lines are for the output file, others for the error file."""

    job: int
    line: int
    ok: bool
    answer: bytes
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Deferred:
    """A request that goes back, to be leased again from `ready_at` on."""

    job: int
    line: int
    ready_at: float
    attempts: int
    engines_lost: int
