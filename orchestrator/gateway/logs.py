"""`/api/v1/logs`: what the components of a mesh wrote, on every node, also those that died.

Logs may name what clients sent, so they need what a change needs: an admin key, or loopback where
there are none.
"""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Protocol

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from orchestrator.api.errors import error_response
from orchestrator.gateway.admin import AdminCheck
from orchestrator.telemetry.log_files import Read
from orchestrator.telemetry.log_lines import LogRecord, concerns, merged

MOST_LINES = 10_000
MOST_FOLLOWERS = 16
POLL_S = 1.0
KEEPALIVE_S = 10.0
READ_TIMEOUT_S = 20.0
"""Another node may have to start a process for it."""

log = logging.getLogger(__name__)

Offsets = Mapping[str, int]


class LogSource(Protocol):
    """The nodes' log files."""

    def nodes(self) -> list[str]:
        """Names of those that live; may block."""
        ...

    async def read(self, node: str, offsets: Offsets) -> Read:
        """What came there since. Raises OSError where the node does not answer."""
        ...


@dataclass
class Cursor:
    """How far each node's files were read. failed: nodes that did not answer the last time."""

    offsets: dict[str, Offsets] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


class Logs:
    """The route, around one source."""

    def __init__(self, source: LogSource, admin: AdminCheck) -> None:
        self._source = source
        self._admin = admin
        self._followers = 0

    def routes(self) -> list[Route]:
        return [Route("/api/v1/logs", self.logs)]

    async def logs(self, request: Request) -> Response:
        """`component`, `lines` (the newest), `follow`: as server-sent events, for ever."""
        if refused := self._admin.refusal_of_reader(request):
            return refused
        asked, lines = request.query_params.get("component", ""), _lines(request)
        if lines is None:
            message = f"lines is a whole number from 0 to {MOST_LINES}"
            return error_response(HTTPStatus.BAD_REQUEST, message)
        if request.query_params.get("follow", "false").lower() in ("1", "true", "yes", ""):
            return self._follow(asked, lines)
        cursor = Cursor()
        found = await self._read(cursor)
        body = {
            "lines": [r.to_json() for r in _chosen(found, asked, lines)],
            "components": sorted({record.component for record in found}),
            "unread_nodes": cursor.failed,
        }
        return JSONResponse(body, headers={"cache-control": "no-store"})

    def _follow(self, asked: str, lines: int) -> Response:
        if self._followers >= MOST_FOLLOWERS:
            message = f"{MOST_FOLLOWERS} clients follow the logs already: close one"
            return error_response(HTTPStatus.TOO_MANY_REQUESTS, message)

        async def stream() -> AsyncIterator[bytes]:
            self._followers += 1
            try:
                async for part in self._parts(asked, lines):
                    yield part
            finally:
                self._followers -= 1

        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        return StreamingResponse(stream(), media_type="text/event-stream", headers=headers)

    async def _parts(self, asked: str, lines: int) -> AsyncIterator[bytes]:
        cursor, most, silent_s = Cursor(), lines, 0.0
        while True:
            chosen = _chosen(await self._read(cursor), asked, most)
            most = MOST_LINES
            if chosen:
                silent_s = 0.0
                yield b"".join(_event(record) for record in chosen)
            elif (silent_s := silent_s + POLL_S) >= KEEPALIVE_S:
                silent_s = 0.0
                yield b": nothing new\n\n"
            await asyncio.sleep(POLL_S)

    async def _read(self, cursor: Cursor) -> list[LogRecord]:
        nodes = await asyncio.to_thread(self._source.nodes)
        parts = await asyncio.gather(*(self._read_node(node, cursor) for node in nodes))
        return [record for part in parts for record in part]

    async def _read_node(self, node: str, cursor: Cursor) -> list[LogRecord]:
        try:
            async with asyncio.timeout(READ_TIMEOUT_S):
                read = await self._source.read(node, cursor.offsets.get(node, {}))
        except (OSError, TimeoutError) as error:
            cursor.failed[node] = str(error) or "it does not answer"
            return []
        cursor.failed.pop(node, None)
        cursor.offsets[node] = read.offsets
        return read.records


def _chosen(found: list[LogRecord], asked: str, most: int) -> list[LogRecord]:
    return merged((record for record in found if concerns(record, asked)), most)


def _event(record: LogRecord) -> bytes:
    return f"data: {json.dumps(record.to_json(), default=str)}\n\n".encode()


def _lines(request: Request) -> int | None:
    text = request.query_params.get("lines", "200")
    return int(text) if text.isdecimal() and int(text) <= MOST_LINES else None
