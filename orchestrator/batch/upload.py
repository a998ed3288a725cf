"""Reads a multipart upload into a spool as it comes: no more than a piece of it is in memory.

`python_multipart` finds the parts; of those only the file may be long.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header

from orchestrator.batch.content import Spool

MAX_FIELD_BYTES = 4096
WRITE_BYTES = 1 << 20
"""Pieces are gathered to this before they are written: each write is a switch to a thread."""


class BadUploadError(Exception):
    """The request is no upload of one file, and why."""


class UploadTooLargeError(Exception):
    """The file is larger than allowed."""


@dataclass(slots=True)
class Upload:
    """What came beside the file's bytes."""

    filename: str = ""
    has_file: bool = False
    fields: dict[str, str] = field(default_factory=dict)


async def receive(
    pieces: AsyncIterator[bytes], content_type: str, spool: Spool, limit_bytes: int
) -> Upload:
    """Write the part `file` into the spool, and return the other parts.

    Raises:
        BadUploadError, UploadTooLargeError: the spool has a part of it.
        OSError: the disk is full.
    """
    kind, options = parse_options_header(content_type)
    if kind != b"multipart/form-data" or not options.get(b"boundary"):
        raise BadUploadError("send multipart/form-data with the parts `purpose` and `file`")
    parts = _Parts()
    parser = MultipartParser(options[b"boundary"], parts.callbacks())
    try:
        async for piece in pieces:
            parser.write(piece)
            if spool.bytes + len(parts.pending) > limit_bytes:
                raise UploadTooLargeError
            if len(parts.pending) >= WRITE_BYTES:
                await asyncio.to_thread(spool.write, parts.take())
        parser.finalize()
    except MultipartParseError as error:
        raise BadUploadError(f"this is no multipart/form-data: {error}") from error
    await asyncio.to_thread(spool.write, parts.take())
    if not parts.whole:
        raise BadUploadError("the upload ended before its last part did")
    if not parts.upload.has_file:
        raise BadUploadError("there is no part `file`")
    return parts.upload


class _Parts:
    """Callbacks of the parser; `pending` is what came of the file since `take`."""

    def __init__(self) -> None:
        self.upload = Upload()
        self.pending = bytearray()
        self.whole = False
        self._header_name = b""
        self._header_value = b""
        self._name = ""
        self._is_file = False
        self._value = bytearray()

    def callbacks(self) -> Any:
        names = (
            "on_part_begin",
            "on_part_data",
            "on_part_end",
            "on_header_field",
            "on_header_value",
            "on_header_end",
            "on_end",
        )
        found: dict[str, Callable[..., None]] = {n: getattr(self, n) for n in names}
        return found

    def take(self) -> bytes:
        data = bytes(self.pending)
        self.pending.clear()
        return data

    def on_part_begin(self) -> None:
        self._name, self._is_file = "", False
        self._value.clear()

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def on_header_end(self) -> None:
        name, value = self._header_name.lower(), self._header_value
        self._header_name = self._header_value = b""
        if name != b"content-disposition":
            return
        _, options = parse_options_header(value)
        self._name = options.get(b"name", b"").decode(errors="replace")
        if self._name == "file":
            if self.upload.has_file:
                raise BadUploadError("there are two parts `file`")
            self._is_file = self.upload.has_file = True
            filename = options.get(b"filename", b"upload.jsonl").decode(errors="replace")
            # A name, never a path; and PostgreSQL takes no NUL.
            self.upload.filename = filename.replace("\0", "").rpartition("/")[2][:255]

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._is_file:
            self.pending += data[start:end]
            return
        self._value += data[start:end]
        if len(self._value) > MAX_FIELD_BYTES:
            raise BadUploadError(f"the part {self._name!r} is longer than {MAX_FIELD_BYTES} bytes")

    def on_part_end(self) -> None:
        if not self._is_file:
            self.upload.fields[self._name] = self._value.decode(errors="replace")

    def on_end(self) -> None:
        self.whole = True
