"""The files that a node's processes write to, which outlive them: Ray gives each worker two.

Ray tells in a file's first lines to whose job it belongs and which actor writes it. Reading goes on
where it ended, by file; a file that has become shorter is read from its beginning.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from orchestrator.telemetry.log_lines import LogRecord, Source, records

TAIL_BYTES = 256 << 10
"""Read of a file that nothing was read of before."""
STEP_BYTES = 1 << 20
"""Read of one file at once."""
_HEAD_BYTES = 4 << 10
_NAME = re.compile(r"^worker-[0-9a-f]+-[0-9a-f]+-(\d+)\.(?:err|out)$")
_COMPONENT = re.compile(rb'"component": "([^"]+)"|^\d{4}-[\d :,-]+ [A-Z]+ +(\S+) [\w.]+: ', re.M)
_JOB = re.compile(rb"^:job_id:([0-9a-f]+)", re.M)
_ACTOR = re.compile(rb"^:actor_name:(.+)$", re.M)


@dataclass(frozen=True, slots=True)
class Read:
    """offsets: where to go on, by file. records: of all files, not in the order of time."""

    offsets: Mapping[str, int]
    records: list[LogRecord]


def read_logs(folder: Path, node: str, offsets: Mapping[str, int], job: str = "") -> Read:
    """What came since `offsets`. job: of whose workers' files alone; empty: of all.

    Blocks: call it in a thread.
    """
    new = dict(offsets)
    found: list[LogRecord] = []
    for path in _files(folder):
        try:
            with path.open("rb") as file:
                head = file.read(_HEAD_BYTES)
                size = file.seek(0, 2)
                at = offsets.get(path.name)
                if (at is None or at > size) and not _is_of(head, job):
                    continue
                start = max(0, size - TAIL_BYTES) if at is None else at if at <= size else 0
                file.seek(start)
                text = file.read(STEP_BYTES)
                seen_s = path.stat().st_mtime
        except OSError:  # removed meanwhile
            continue
        if at is None and start > 0:  # from the middle of a line
            skipped = text.find(b"\n") + 1
            start, text = start + skipped, text[skipped:]
        # The last line is still being written; one that fills everything is taken as it is.
        whole = text.rfind(b"\n") + 1 or (len(text) if len(text) == STEP_BYTES else 0)
        new[path.name] = start + whole
        source = Source(node, _pid(path), _component(head), seen_s)
        found += records(text[:whole].decode(errors="replace"), source)
    return Read(new, found)


def _files(folder: Path) -> Iterator[Path]:
    for place in (folder, folder / "old"):
        if place.is_dir():
            yield from sorted(path for path in place.iterdir() if _NAME.match(path.name))


def _pid(path: Path) -> int:
    match = _NAME.match(path.name)
    return int(match.group(1)) if match else 0


def _is_of(head: bytes, job: str) -> bool:
    """Of a worker that was given to no job yet nothing is told."""
    found = _JOB.search(head)
    return found is not None and (not job or found.group(1).decode() == job)


def _component(head: bytes) -> str:
    """The one that the first of our lines names, else what Ray calls the actor."""
    if named := _COMPONENT.search(head):
        return (named.group(1) or named.group(2)).decode(errors="replace")
    actor = _ACTOR.search(head)
    return actor.group(1).decode(errors="replace") if actor else ""
