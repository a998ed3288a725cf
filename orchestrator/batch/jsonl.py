"""Input files: which lines there are, and what is wrong with one."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from orchestrator.batch.records import LineError

ENDPOINTS = frozenset({"/v1/chat/completions", "/v1/completions"})
MAX_CUSTOM_ID = 512
"""Characters."""


@dataclass(frozen=True, slots=True)
class Line:
    """number: from 1, blank lines count. offset: of its first byte in the file."""

    number: int
    offset: int
    data: bytes


class LineTooLongError(Exception):
    """A line is larger than a request may be; `number` is its number."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class BadLineError(Exception):
    """A line will not do, and why."""

    def __init__(self, error: LineError) -> None:
        super().__init__(error.message)
        self.error = error


def read_lines(file: BinaryIO, number: int, offset: int, max_bytes: int) -> Iterator[Line]:
    """The lines that are not blank after line `number`, which ends at `offset`.

    Raises:
        LineTooLongError: no more than `max_bytes` of a line are ever held.
    """
    file.seek(offset)
    while data := file.readline(max_bytes + 2):
        number += 1
        if len(data.rstrip(b"\r\n")) > max_bytes:
            raise LineTooLongError(number)
        if data.strip():
            yield Line(number, offset, data)
        offset += len(data)


def check_line(line: Line, endpoint: str, model: str) -> tuple[str, dict[str, Any]]:
    """(custom id, request body) of a line of a job for `endpoint`.

    Raises:
        BadLineError: it is not JSON, not a request, or not for this endpoint and model.
    """

    def refuse(code: str, message: str, param: str | None = None) -> BadLineError:
        return BadLineError(LineError(code, message, line.number, param))

    try:
        value = json.loads(line.data.decode())
    except UnicodeDecodeError as error:
        raise refuse("invalid_utf8", f"this line is not UTF-8 ({error.reason})") from error
    except (ValueError, RecursionError) as error:
        raise refuse("invalid_json_line", f"this line is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise refuse("invalid_json_line", "this line is no JSON object")
    custom_id = value.get("custom_id")
    if not isinstance(custom_id, str) or not _storable(custom_id):
        message = f"custom_id must be a text of 1 to {MAX_CUSTOM_ID} characters"
        raise refuse("invalid_custom_id", message, "custom_id")
    if value.get("method", "POST") != "POST":
        raise refuse("invalid_method", "method must be POST", "method")
    if value.get("url") != endpoint:
        message = f"url {value.get('url')!r} is not the job's endpoint {endpoint}"
        raise refuse("mismatched_endpoint", message, "url")
    body = value.get("body")
    if not isinstance(body, dict):
        raise refuse("invalid_body", "body must be a JSON object", "body")
    _check_body(body, model, refuse)
    return custom_id, body


def _check_body(body: Mapping[str, Any], model: str, refuse: Any) -> None:
    if body.get("model") != model:
        message = f"the model {body.get('model')!r} does not exist here; there is {model!r}"
        raise refuse("model_not_found", message, "body.model")
    if body.get("stream"):
        raise refuse("invalid_body", "stream has no meaning in a batch job", "body.stream")


def _storable(text: str) -> bool:
    """PostgreSQL takes no NUL in a text, and half a surrogate pair is no UTF-8."""
    if not 0 < len(text) <= MAX_CUSTOM_ID or "\0" in text:
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
