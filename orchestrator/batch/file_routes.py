"""`/v1/files`: upload, list, retrieve, content, delete."""

import asyncio
import errno
import logging
import time
from collections.abc import AsyncIterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse

from orchestrator.batch.access import owner_of
from orchestrator.batch.content import ContentStore, read_chunks
from orchestrator.batch.database import StorageFullError
from orchestrator.batch.file_rows import FileInUseError, new_file_id
from orchestrator.batch.ledger import Ledger
from orchestrator.batch.pages import UnknownCursorError
from orchestrator.batch.records import FileRecord
from orchestrator.batch.replies import Refused, bad_request, not_found, page_query, reply
from orchestrator.batch.settings import BatchSettings
from orchestrator.batch.upload import BadUploadError, Upload, UploadTooLargeError, receive
from orchestrator.batch.views import file_view, page_view
from orchestrator.config.bytesize import format_bytes

logger = logging.getLogger(__name__)

PURPOSE = "batch"
DEFAULT_LIMIT = MAX_LIMIT = 10_000
SILENCE_S = 60.0
"""An upload that brings nothing for so long is given up."""
MULTIPART_BYTES = 64 << 10
"""What an upload may have around its file."""
MAX_EXPIRY_S = 30 * 24 * 3600


class FileRoutes:
    """Handlers, each for the files of the caller's name."""

    def __init__(self, settings: BatchSettings, ledger: Ledger, store: ContentStore) -> None:
        self._settings = settings
        self._ledger = ledger
        self._store = store

    async def create(self, request: Request) -> Response:
        try:
            return reply(file_view(await self._create(request)))
        except ClientDisconnect:
            return Response(status_code=HTTPStatus.BAD_REQUEST)  # nobody reads it

    async def list(self, request: Request) -> Response:
        query = page_query(request, DEFAULT_LIMIT, MAX_LIMIT)
        purpose = request.query_params.get("purpose")
        owner = owner_of(request, self._settings)
        try:
            page = await asyncio.to_thread(self._ledger.files.page, owner, query, purpose)
        except UnknownCursorError as error:
            raise bad_request(f"after: there is no file {error}") from error
        return reply(page_view(page, [file_view(file) for file in page.items]))

    async def retrieve(self, request: Request) -> Response:
        return reply(file_view(await self._find(request)))

    async def content(self, request: Request) -> Response:
        file = await self._find(request)
        try:
            path = await asyncio.to_thread(self._store.local, file.digest)
        except FileNotFoundError as error:
            raise not_found("file", file.id) from error
        headers = {"content-length": str(file.bytes)}
        return StreamingResponse(_stream(path), 200, headers, "application/octet-stream")

    async def delete(self, request: Request) -> Response:
        file = await self._find(request)
        try:
            await asyncio.to_thread(self._ledger.files.delete, file, self._store.remove)
        except FileInUseError as error:
            raise bad_request(
                f"{file.id} is the input of the unfinished job {error}: cancel that first",
                "file_in_use",
            ) from error
        return reply({"id": file.id, "object": "file", "deleted": True})

    async def _find(self, request: Request) -> FileRecord:
        owner = owner_of(request, self._settings)
        file_id = request.path_params["file_id"]
        file = await asyncio.to_thread(self._ledger.files.get, file_id, owner)
        if file is None:
            raise not_found("file", file_id)
        return file

    async def _create(self, request: Request) -> FileRecord:
        owner = owner_of(request, self._settings)
        limit = await self._limit(owner)
        announced = request.headers.get("content-length", "0")
        if announced.isdecimal() and int(announced) > limit + MULTIPART_BYTES:
            raise _too_large(limit)
        kind = request.headers.get("content-type", "")
        try:
            with self._store.spool() as spool:
                upload = await receive(_in_time(request), kind, spool, limit)
                lifetime_s = _lifetime_s(upload)
                digest = await asyncio.to_thread(spool.seal)
                now_s = time.time()
                file = FileRecord(
                    id=new_file_id(),
                    owner=owner,
                    filename=upload.filename,
                    purpose=PURPOSE,
                    bytes=spool.bytes,
                    digest=digest,
                    created_at=now_s,
                    expires_at=None if lifetime_s is None else now_s + lifetime_s,
                )
                added = False
                while not added:
                    await asyncio.to_thread(self._store.put, spool, digest)
                    added = await asyncio.to_thread(self._ledger.files.add, file, self._store.has)
        except BadUploadError as error:
            raise bad_request(str(error)) from error
        except UploadTooLargeError as error:
            raise _too_large(limit) from error
        except OSError as error:
            if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
                raise
            raise StorageFullError(str(error)) from error
        return file

    async def _limit(self, owner: str) -> int:
        """How large the owner's next file may be."""
        config = self._settings.config
        stored = await asyncio.to_thread(self._ledger.files.stored_bytes, owner)
        left = config.max_stored - stored
        if left <= 0:
            message = f"files of {owner!r} take {format_bytes(stored)}: delete some"
            raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, message, "quota_exceeded")
        return min(left, config.max_file_size)


FILE_ROUTES: tuple[tuple[str, str, Any], ...] = (
    ("POST", "/v1/files", FileRoutes.create),
    ("GET", "/v1/files", FileRoutes.list),
    ("GET", "/v1/files/{file_id}", FileRoutes.retrieve),
    ("DELETE", "/v1/files/{file_id}", FileRoutes.delete),
    ("GET", "/v1/files/{file_id}/content", FileRoutes.content),
)
"""Method, path, handler."""


def _lifetime_s(upload: Upload) -> float | None:
    """Seconds that the file is kept, None for ever. Raises `BadUploadError`."""
    purpose = upload.fields.get("purpose")
    if purpose != PURPOSE:
        raise BadUploadError(f"purpose must be {PURPOSE!r}, not {purpose!r}")
    seconds = upload.fields.get("expires_after[seconds]")
    if seconds is None:
        return None
    if not seconds.isdecimal() or not 3600 <= int(seconds) <= MAX_EXPIRY_S:
        raise BadUploadError(f"expires_after[seconds] must be from 3600 to {MAX_EXPIRY_S}")
    return float(seconds)


def _too_large(limit: int) -> Refused:
    message = f"the file is larger than {format_bytes(limit)}"
    return Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, message, "file_too_large")


async def _in_time(request: Request) -> AsyncIterator[bytes]:
    """The body piece by piece. Raises `Refused` for a client that has stopped sending."""
    pieces = aiter(request.stream())
    while True:
        try:
            async with asyncio.timeout(SILENCE_S):
                piece = await anext(pieces, None)
        except TimeoutError as error:
            message = f"the upload brought nothing for {SILENCE_S:.0f} s"
            raise Refused(HTTPStatus.REQUEST_TIMEOUT, message) from error
        if piece is None:
            return
        yield piece


async def _stream(path: Path) -> AsyncIterator[bytes]:
    chunks = read_chunks(path)
    while chunk := await asyncio.to_thread(next, chunks, b""):
        yield chunk
