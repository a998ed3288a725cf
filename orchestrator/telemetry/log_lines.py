"""What processes wrote, as records: our own lines in both forms, vLLM's, and what is in neither.

A line without a time of its own (a traceback, a crash report) belongs to the record before it.
"""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

MOST_LINES = 200
"""Lines that one record may have; what follows begins another."""

_OURS = re.compile(
    r"^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),(\d{3}) ([A-Z]+) +(?:(\S+) )?([\w.]+): (.*)$"
)
_VLLM = re.compile(
    r"^(?:\(\w+ pid=\d+\) )*([A-Z]+) (\d\d-\d\d \d\d:\d\d:\d\d) \[([\w./]+):\d+\] (.*)$"
)
_RAYS = re.compile(r"^:(?:job_id|actor_name|task_name):")


@dataclass(frozen=True, slots=True)
class LogRecord:
    """time_s: Unix time, 0 where nothing said. component: the process's id in the mesh. more: what
    a JSON line says beside the usual."""

    time_s: float
    level: str
    component: str
    logger: str
    message: str
    node: str = ""
    pid: int = 0
    more: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """`more` beside the other keys, as the process wrote it."""
        said = {name: value for name, value in asdict(self).items() if name != "more"}
        return {**(self.more or {}), **said}


@dataclass(frozen=True, slots=True)
class Source:
    """Where lines come from. component: of lines that do not say so; seen_s: when the newest of its
    lines that had a time was written, or the file."""

    node: str
    pid: int
    component: str
    seen_s: float


def records(text: str, source: Source) -> Iterator[LogRecord]:
    """Of whole lines, in the order they were written."""
    known = [record for line in text.splitlines() if (record := _parse(line, source))]
    component = source.component
    if source.component == "" and known:
        component = known[0].component
    current: LogRecord | None = None
    lines = 0
    for line in text.splitlines():
        if not line.strip() or _RAYS.match(line):
            continue
        parsed = _parse(line, source)
        if parsed is None and current is not None and lines < MOST_LINES:
            current = replace(current, message=f"{current.message}\n{line}")
            lines += 1
            continue
        if current is not None:
            yield current
        if parsed is None:
            before = current or (known[0] if known else None)
            time_s = round(source.seen_s, 3) if before is None else before.time_s
            parsed = LogRecord(time_s, "", component, "", line, source.node, source.pid)
        component = parsed.component or component
        current, lines = replace(parsed, component=component), 1
    if current is not None:
        yield current


def merged(all_records: Iterable[LogRecord], most: int) -> list[LogRecord]:
    """The newest `most`, oldest first; those of one process keep their order."""
    return sorted(all_records, key=lambda record: record.time_s)[-most:] if most else []


def concerns(record: LogRecord, asked: str) -> bool:
    """asked: a component, or what its id begins with (`engine` for `engine-0`); empty: all."""
    name = record.component
    return not asked or name == asked or name.startswith(f"{asked}-")


def _parse(line: str, source: Source) -> LogRecord | None:
    if line.startswith("{"):
        return _of_json(line, source)
    if match := _OURS.match(line):
        day, ms, level, component, logger, message = match.groups()
        time_s = _local(day) + int(ms) / 1000
        return _made(source, time_s, level, component or "", logger, message)
    if match := _VLLM.match(line):
        level, day, file, message = match.groups()
        # vLLM leaves the year out.
        year = datetime.fromtimestamp(source.seen_s).year
        return _made(source, _local(f"{year}-{day}"), level, "", f"vllm.{file}", message)
    return None


def _of_json(line: str, source: Source) -> LogRecord | None:
    try:
        said = json.loads(line)
        time_s = datetime.fromisoformat(said.pop("time")).replace(tzinfo=UTC).timestamp()
        known = [str(said.pop(name)) for name in ("level", "component", "logger", "message")]
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    level, component, logger, message = known
    record = _made(source, time_s, level, component, logger, message)
    return replace(record, more=said or None)


def _made(
    source: Source, time_s: float, level: str, component: str, logger: str, message: str
) -> LogRecord:
    return LogRecord(
        round(time_s, 3), level.lower(), component, logger, message, source.node, source.pid
    )


def _local(text: str) -> float:
    try:
        return datetime.strptime(text, "%Y-%m-%d %H:%M:%S").timestamp()
    except ValueError:
        return 0.0
