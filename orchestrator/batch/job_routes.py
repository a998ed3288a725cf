"""`/v1/batches`: create, retrieve, list, cancel; beyond OpenAI's: pause and resume."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Annotated, Any, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)
from starlette.requests import Request
from starlette.responses import Response

from orchestrator.api.request_body import read_body
from orchestrator.batch.access import owner_of
from orchestrator.batch.jsonl import ENDPOINTS
from orchestrator.batch.ledger import Ledger
from orchestrator.batch.pages import UnknownCursorError
from orchestrator.batch.records import JobRecord, NewJob
from orchestrator.batch.replies import Refused, bad_request, not_found, page_query, reply
from orchestrator.batch.settings import BatchSettings
from orchestrator.batch.states import FINISHED
from orchestrator.batch.views import job_view, page_view
from orchestrator.config.times import Hours, window_s

DEFAULT_LIMIT, MAX_LIMIT = 20, 100
MAX_BODY_BYTES = 64 << 10
BODY_TIMEOUT_S = 10.0
MAX_PRIORITY = 100

_Key = Annotated[str, StringConstraints(max_length=64)]
_Value = Annotated[str, StringConstraints(max_length=512)]


class JobRequest(BaseModel):
    """Body of `POST /v1/batches`."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    input_file_id: str
    endpoint: str
    completion_window: str = "24h"
    metadata: Annotated[dict[_Key, _Value], Field(max_length=16)] | None = None
    priority: Annotated[int, Field(ge=-MAX_PRIORITY, le=MAX_PRIORITY)] = 0
    """Beyond OpenAI's: of the caller's jobs those with a higher one come first."""
    run_between: str | None = None
    """Beyond OpenAI's: hours of the day, such as 22:00-06:00."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.endpoint not in ENDPOINTS:
            raise ValueError(f"endpoint must be one of {', '.join(sorted(ENDPOINTS))}")
        window_s(self.completion_window)
        if self.run_between is not None:
            Hours.parse(self.run_between)
        return self


class JobRoutes:
    """Handlers, each for the jobs of the caller's name. wake: has the runner look at the jobs."""

    def __init__(
        self, settings: BatchSettings, ledger: Ledger, wake: Callable[[], Awaitable[None]]
    ) -> None:
        self._settings = settings
        self._ledger = ledger
        self._wake = wake

    @property
    def ledger(self) -> Ledger:
        return self._ledger

    async def create(self, request: Request) -> Response:
        owner = owner_of(request, self._settings)
        body = await read_body(request, MAX_BODY_BYTES, BODY_TIMEOUT_S)
        try:
            asked = JobRequest.model_validate_json(body)
        except ValidationError as error:
            raise bad_request(_first_problem(error)) from error
        file = await asyncio.to_thread(self._ledger.files.get, asked.input_file_id, owner)
        if file is None:
            raise not_found("file", asked.input_file_id)
        most = self._settings.config.max_open_jobs
        if await asyncio.to_thread(self._ledger.jobs.unfinished_of, owner) >= most:
            message = f"{owner!r} has {most} unfinished jobs: wait for one, or cancel one"
            raise Refused(HTTPStatus.TOO_MANY_REQUESTS, message, "too_many_jobs")
        new = NewJob(
            owner=owner,
            endpoint=asked.endpoint,
            input_file=asked.input_file_id,
            completion_window=asked.completion_window,
            window_s=window_s(asked.completion_window),
            metadata=asked.metadata or {},
            priority=asked.priority,
            run_between=asked.run_between,
        )
        job = await asyncio.to_thread(self._ledger.jobs.create, new, time.time())
        if job is None:
            raise not_found("file", asked.input_file_id)
        await self._wake()
        return self._view(job)

    async def list(self, request: Request) -> Response:
        query = page_query(request, DEFAULT_LIMIT, MAX_LIMIT)
        owner = owner_of(request, self._settings)
        try:
            page = await asyncio.to_thread(self._ledger.jobs.page, owner, query)
        except UnknownCursorError as error:
            raise bad_request(f"after: there is no job {error}") from error
        model = self._settings.model_name
        return reply(page_view(page, [job_view(job, model) for job in page.items]))

    async def retrieve(self, request: Request) -> Response:
        return self._view(await self._find(request))

    async def cancel(self, request: Request) -> Response:
        job = await self._find(request)
        if not await asyncio.to_thread(self._ledger.jobs.cancel, job.id, time.time()):
            raise _too_late(await self._find(request), "cancelled")
        await self._wake()
        return self._view(await self._find(request))

    async def pause(self, request: Request) -> Response:
        job = await self._find(request)
        reason = "paused by its owner"
        if not await asyncio.to_thread(self._ledger.jobs.pause, job.id, reason):
            raise _too_late(job, "paused")
        return self._view(await self._find(request))

    async def resume(self, request: Request) -> Response:
        job = await self._find(request)
        if not await asyncio.to_thread(self._ledger.jobs.resume, job.id):
            raise _too_late(job, "resumed")
        await self._wake()
        return self._view(await self._find(request))

    async def _find(self, request: Request) -> JobRecord:
        owner = owner_of(request, self._settings)
        job_id = request.path_params["job_id"]
        job = await asyncio.to_thread(self._ledger.jobs.get, job_id, owner)
        if job is None:
            raise not_found("batch", job_id)
        return job

    def _view(self, job: JobRecord) -> Response:
        return reply(job_view(job, self._settings.model_name))


JOB_ROUTES: tuple[tuple[str, str, Any], ...] = (
    ("POST", "/v1/batches", JobRoutes.create),
    ("GET", "/v1/batches", JobRoutes.list),
    ("GET", "/v1/batches/{job_id}", JobRoutes.retrieve),
    ("POST", "/v1/batches/{job_id}/cancel", JobRoutes.cancel),
    ("POST", "/v1/batches/{job_id}/pause", JobRoutes.pause),
    ("POST", "/v1/batches/{job_id}/resume", JobRoutes.resume),
)
"""Method, path, handler."""


def _too_late(job: JobRecord, what: str) -> Refused:
    state = "finished" if job.status in FINISHED else "about to end"
    message = f"{job.id} is {state} ({job.status}) and cannot be {what}"
    return bad_request(message, "batch_not_open")


def _first_problem(error: ValidationError) -> str:
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    return f"{place}: {message}" if place else message
