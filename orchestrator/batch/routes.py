"""The gateway's routes of batch jobs, which open ledger and files when the first of them is asked.

So a gateway starts although, say, PostgreSQL does not answer, and its other routes serve.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any

from sqlalchemy.exc import DBAPIError
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from orchestrator.api.errors import error_response
from orchestrator.batch.database import StorageFullError
from orchestrator.batch.figures import BatchFigures, read_ledger
from orchestrator.batch.file_routes import FILE_ROUTES, FileRoutes
from orchestrator.batch.job_routes import JOB_ROUTES, JobRoutes
from orchestrator.batch.ledger import open_ledger
from orchestrator.batch.replies import Refused
from orchestrator.batch.settings import BatchSettings
from orchestrator.errors import UserError

logger = logging.getLogger(__name__)

WATCH_S = 2.0

Handler = Callable[[Request], Awaitable[Response]]


class BatchRoutes:
    """Routes around one ledger. wake_runner: has the batch runner look at the jobs."""

    def __init__(self, settings: BatchSettings, wake_runner: Callable[[], Awaitable[None]]) -> None:
        self._settings = settings
        self._wake_runner = wake_runner
        self.figures: BatchFigures | None = None
        """As the ledger was last read for telemetry."""
        self._opening = asyncio.Lock()
        self._files: FileRoutes | None = None
        self._jobs: JobRoutes | None = None

    def routes(self) -> list[Route]:
        files = [
            Route(path, self._endpoint(FileRoutes, handler), methods=[method])
            for method, path, handler in FILE_ROUTES
        ]
        jobs = [
            Route(path, self._endpoint(JobRoutes, handler), methods=[method])
            for method, path, handler in JOB_ROUTES
        ]
        return files + jobs

    async def watch(self) -> None:
        """Read the ledger for telemetry now and then, until cancelled."""
        while True:
            try:
                _, jobs = await self._open()
                self.figures = await asyncio.to_thread(read_ledger, jobs.ledger, time.time())
            except (DBAPIError, StorageFullError, UserError, OSError) as error:
                logger.debug("the batch ledger cannot be read: %s", error)
            await asyncio.sleep(WATCH_S)

    def _endpoint(self, kind: type[FileRoutes] | type[JobRoutes], handler: Any) -> Handler:
        async def endpoint(request: Request) -> Response:
            try:
                files, jobs = await self._open()
                answer: Response = await handler(files if kind is FileRoutes else jobs, request)
                return answer
            except Refused as error:
                return error.response()
            except StorageFullError as error:
                return _unavailable(f"the disk is full: {error}", "storage_full")
            except DBAPIError as error:
                logger.warning("the batch ledger failed: %s", error.orig)
                return _unavailable("the ledger of batch jobs does not answer")
            except UserError as error:
                logger.warning("%s", error)
                return _unavailable(str(error))

        return endpoint

    async def _open(self) -> tuple[FileRoutes, JobRoutes]:
        async with self._opening:
            if self._files is None or self._jobs is None:
                store = await asyncio.to_thread(self._settings.open_store)
                ledger = await asyncio.to_thread(open_ledger, self._settings.database_url)
                self._files = FileRoutes(self._settings, ledger, store)
                self._jobs = JobRoutes(self._settings, ledger, self._wake_runner)
            return self._files, self._jobs


def _unavailable(reason: str, code: str = "batch_unavailable") -> Response:
    return error_response(HTTPStatus.SERVICE_UNAVAILABLE, reason, code)
