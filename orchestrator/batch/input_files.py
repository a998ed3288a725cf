"""What people have, as a batch input file: JSONL as it is, or prompts out of JSONL or Parquet rows.

A file whose lines have a `custom_id` and a `body` is sent as it is. Rows of anything else need
`--prompt-column` or `--template` and become one request each, with the row's number (or its
column `custom_id` or `id`) as custom id. Rows are converted as they are read, a group at a time.
"""

import contextlib
import json
import string
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast

from orchestrator.batch.content import open_filesystem
from orchestrator.batch.jsonl import ENDPOINTS
from orchestrator.errors import UserError

ROWS_PER_GROUP = 1024
CHAT_ENDPOINT = "/v1/chat/completions"
MEMORY_BYTES = 8 << 20
"""What is converted stays in memory up to this, then in a temporary file."""


@dataclass(frozen=True, slots=True)
class Source:
    """place: a path, `-` for stdin, or a URL that fsspec reaches. body: more fields of each request
    that is made of a row, such as `max_tokens`."""

    place: str
    endpoint: str = CHAT_ENDPOINT
    prompt_column: str | None = None
    template: str | None = None
    body: Mapping[str, Any] = field(default_factory=dict)


@contextmanager
def open_source(source: Source, model: Callable[[], str]) -> Iterator[tuple[str, BinaryIO]]:
    """(name, seekable file) to upload; `model` is asked for only where requests are made of rows.

    Raises:
        UserError: it is not there, cannot be read, or has no such column.
    """
    if source.endpoint not in ENDPOINTS:
        raise UserError(f"endpoint must be one of {', '.join(sorted(ENDPOINTS))}")
    name = "stdin.jsonl" if source.place == "-" else source.place.rstrip("/").rpartition("/")[2]
    with (
        _open(source.place) as raw,
        tempfile.SpooledTemporaryFile(MEMORY_BYTES) as converted,
    ):
        if source.prompt_column is None and source.template is None:
            if name.endswith(".parquet"):
                raise UserError(
                    f"{source.place} has rows, no requests",
                    "name the column with the prompts: --prompt-column NAME",
                )
            yield name, cast(BinaryIO, _seekable(raw, converted))
            return
        rows = _parquet_rows(raw) if name.endswith(".parquet") else _json_rows(raw, source.place)
        called = model()
        for number, row in enumerate(rows, 1):
            request = make_request(source, called, number, row)
            converted.write(json.dumps(request, ensure_ascii=False).encode() + b"\n")
        converted.seek(0)
        yield name.removesuffix(".parquet").removesuffix(".jsonl") + ".jsonl", converted  # type: ignore[misc]


def make_request(source: Source, model: str, number: int, row: Mapping[str, Any]) -> dict[str, Any]:
    """The request of one row. Raises `UserError` for a column that is not there."""
    try:
        if source.template is not None:
            prompt = _Template().vformat(source.template, (), row)
        else:
            prompt = str(row[str(source.prompt_column)])
    except (KeyError, ValueError, IndexError) as error:
        raise UserError(
            f"row {number} has no column {error}", f"it has {', '.join(map(str, row)) or 'none'}"
        ) from error
    body = {"model": model, **source.body}
    if source.endpoint == CHAT_ENDPOINT:
        body["messages"] = [{"role": "user", "content": prompt}]
    else:
        body["prompt"] = prompt
    custom_id = row.get("custom_id", row.get("id", f"row-{number}"))
    return {
        "custom_id": str(custom_id),
        "method": "POST",
        "url": source.endpoint,
        "body": body,
    }


class _Template(string.Formatter):
    """`{column}` and nothing more: no attributes or items of what a column holds."""

    def get_field(self, field_name: str, args: Any, kwargs: Any) -> tuple[Any, str]:
        return kwargs[field_name], field_name


@contextmanager
def _open(place: str) -> Iterator[BinaryIO]:
    if place == "-":
        yield sys.stdin.buffer
        return
    try:
        with contextlib.ExitStack() as stack:
            if "://" in place:
                files, path = open_filesystem(place)
                file = stack.enter_context(files.open(path, "rb"))
            else:
                file = stack.enter_context(Path(place).open("rb"))
            opened = stack.pop_all()
    except (OSError, ValueError) as error:
        said = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{place} cannot be read: {said}") from error
    with opened:
        yield cast(BinaryIO, file)


def _seekable(raw: BinaryIO, copy: Any) -> Any:
    if raw.seekable():
        return raw
    while chunk := raw.read(1 << 20):
        copy.write(chunk)
    copy.seek(0)
    return copy


def _json_rows(raw: BinaryIO, place: str) -> Iterator[Mapping[str, Any]]:
    for number, line in enumerate(raw, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"line {number} of {place} is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise UserError(f"line {number} of {place} is no JSON object")
        yield row


def _parquet_rows(raw: BinaryIO) -> Iterator[Mapping[str, Any]]:
    import pyarrow
    from pyarrow import parquet

    try:
        for batch in parquet.ParquetFile(raw).iter_batches(ROWS_PER_GROUP):
            yield from batch.to_pylist()
    except pyarrow.ArrowInvalid as error:
        raise UserError(f"this is no Parquet file: {error}") from error
