"""Validates an input file a stretch at a time, and remembers after each how far it is.

A runner that takes over goes on where the last stretch ended. At most `MAX_ERRORS` errors are told;
with any at all the job fails before a request of it is computed.
"""

from dataclasses import dataclass
from pathlib import Path

from orchestrator.batch.jsonl import BadLineError, LineTooLongError, check_line, read_lines
from orchestrator.batch.prefix import prefix_key
from orchestrator.batch.records import JobRecord, LineError, NewRequest
from orchestrator.batch.request_rows import RequestRows

LINES_PER_STRETCH = 2_000
MAX_ERRORS = 100


@dataclass(frozen=True, slots=True)
class Limits:
    """max_requests: of one job. max_line_bytes: of one request."""

    max_requests: int
    max_line_bytes: int


@dataclass(frozen=True, slots=True)
class Stretch:
    """What one call found: lines that are well, errors, and where it ended. `last`: the file is
    read, or so wrong that reading on would tell nothing."""

    lines: list[NewRequest]
    errors: list[LineError]
    checked: tuple[int, int]
    last: bool


def read_stretch(path: Path, job: JobRecord, model: str, limits: Limits) -> Stretch:
    """The next lines of a job's input file."""
    lines: list[NewRequest] = []
    errors: list[LineError] = []
    number, offset = job.checked_lines, job.checked_bytes
    with path.open("rb") as file:
        try:
            for line in read_lines(file, number, offset, limits.max_line_bytes):
                number, offset = line.number, line.offset + len(line.data)
                try:
                    custom_id, body = check_line(line, job.endpoint, model)
                    key = prefix_key(body)
                    length = len(line.data)
                    lines.append(NewRequest(number, custom_id, line.offset, length, key))
                except BadLineError as error:
                    errors.append(error.error)
                if job.total + len(lines) > limits.max_requests:
                    errors.append(_too_many(number, limits.max_requests))
                    return Stretch(lines, errors, (number, offset), True)
                if len(lines) + len(errors) >= LINES_PER_STRETCH or len(errors) >= MAX_ERRORS:
                    return Stretch(lines, errors, (number, offset), False)
        except LineTooLongError as error:
            errors.append(_too_long(error.number, limits.max_line_bytes))
    if not errors and not lines and job.total == 0:
        errors.append(LineError("empty_file", "the input file has no request"))
    return Stretch(lines, errors, (number, offset), True)


def add_stretch(
    requests: RequestRows, term: int, job: JobRecord, stretch: Stretch
) -> list[LineError]:
    """Add the lines of a stretch without errors; returns the errors that this brings up.

    Raises:
        SupersededError: another runner has begun.
    """
    doubled = requests.add(term, job, stretch.lines, stretch.checked)
    return [
        LineError(
            "duplicate_custom_id",
            f"the custom_id {line.custom_id!r} was used before",
            line.line,
            "custom_id",
        )
        for line in doubled[:MAX_ERRORS]
    ]


def _too_many(line: int, limit: int) -> LineError:
    return LineError("too_many_requests", f"a job has at most {limit} requests", line)


def _too_long(line: int, limit: int) -> LineError:
    return LineError("line_too_long", f"a request has at most {limit} bytes", line)
