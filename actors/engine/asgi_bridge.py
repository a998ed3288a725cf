"""Calls an ASGI application in-process: one `HttpRequest` in, a stream of replies out.

The application runs as a task of its own; what it sends is collected in an `_Exchange`. The stream
takes everything collected since its last item as *one* item, so a reader that is slower than the
application gets fewer, larger items instead of a growing queue of small ones: each item costs a
message between processes. `pace` sets the least time between two items; the first item and the end
never wait for it. What the model put out (`output_record`) travels with the next bytes, or by
itself where none come for `PROGRESS_S`.

Closing the stream early (or cancelling its reader) is the client's disconnect: the application
receives `http.disconnect`, has `DISCONNECT_GRACE_S` to end by itself, and is cancelled after that.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, MutableMapping
from typing import Any

from actors.engine.output_record import OutputRecord, recording
from actors.messages import Headers, HttpRequest, Progress, ResponseStart
from actors.request_logs import about_request
from actors.traffic import traffic_of

logger = logging.getLogger(__name__)

Message = MutableMapping[str, Any]
AsgiApp = Callable[
    [Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]],
    Awaitable[None],
]

MAX_PENDING_BYTES = 1 << 20
"""The application waits once this much of the body is not read yet."""

PROGRESS_S = 0.25
"""How often an answer that has no bytes yet tells what the model put out. It is what is computed
again if the engine is lost; telling costs a message."""


class IncompleteResponseError(RuntimeError):
    """An application ended before its response did: nobody may take what came for the whole."""


DISCONNECT_GRACE_S = 5.0
"""How long an application may take to notice `http.disconnect` before it is cancelled."""

# Below 2.4, Starlette watches `receive` for the disconnect while it streams; from 2.4 on it would
# notice only at its next `send`, and an engine would compute that token for nobody.
_ASGI_VERSION = {"version": "3.0", "spec_version": "2.3"}


class _Exchange:
    """What one request and its response have got to: both sides wait on `_changed`."""

    def __init__(self, request: HttpRequest) -> None:
        self._record = OutputRecord(request.record, request.emitted)
        self._body: bytes | None = request.body
        self._status: int | None = None
        self._headers: Headers = ()
        self._pending = bytearray()
        self._disconnected = False
        self._whole = False
        self._complete = asyncio.Event()
        self._changed = asyncio.Condition()

    async def receive(self) -> Message:
        """ASGI `receive`: the whole body at once, then nothing until the client leaves."""
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        async with self._changed:
            await self._changed.wait_for(lambda: self._disconnected or self._complete.is_set())
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """ASGI `send`; waits while the reader is `MAX_PENDING_BYTES` behind."""
        async with self._changed:
            if message["type"] == "http.response.start":
                self._status = message["status"]
                self._headers = tuple((bytes(k), bytes(v)) for k, v in message.get("headers", ()))
                return
            await self._changed.wait_for(
                lambda: self._disconnected or len(self._pending) < MAX_PENDING_BYTES
            )
            self._pending += message.get("body", b"")
            if not message.get("more_body", False):
                self._whole = True
                self._complete.set()
            self._changed.notify_all()

    async def take(self, gather_s: float = 0.0) -> tuple[bytes, bool]:
        """Everything sent since the last call, at least one byte unless the response is over or the
        record has news.

        Waits `gather_s` for more, or until the response is over. Returns: (bytes, whether the
        response is over).
        """
        if gather_s > 0:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._complete.wait(), gather_s)
        async with self._changed:
            while not self._pending and not self._complete.is_set():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(PROGRESS_S if self._record.wanted else None):
                        await self._changed.wait()
                if self._record.news:
                    break
            chunk = bytes(self._pending)
            self._pending.clear()
            self._changed.notify_all()
            return chunk, self._complete.is_set()

    async def end(self) -> None:
        """The application returned, whether or not it completed the response."""
        async with self._changed:
            self._complete.set()
            self._changed.notify_all()

    async def disconnect(self) -> None:
        """The client left."""
        async with self._changed:
            self._disconnected = True
            self._changed.notify_all()

    def start(self, body: bytes) -> ResponseStart:
        assert self._status is not None
        return ResponseStart(self._status, self._headers, body, self._record.take())

    def item(self, body: bytes) -> Progress | bytes:
        """`body`, with what the record has new."""
        return Progress(self._record.take(), body) if self._record.news else body

    @property
    def record(self) -> OutputRecord:
        return self._record

    @property
    def started(self) -> bool:
        return self._status is not None

    @property
    def summary(self) -> str:
        """For the log."""
        if self._status is None:
            return "no answer"
        return f"status {self._status}{'' if self._whole else ', not to its end'}"

    @property
    def whole(self) -> bool:
        """Whether the application has sent the end of its response."""
        return self._whole


def no_pace() -> float:
    """Items as soon as the reader takes them."""
    return 0.0


async def call(
    app: AsgiApp, request: HttpRequest, pace: Callable[[], float] = no_pace
) -> AsyncGenerator[ResponseStart | Progress | bytes, None]:
    """Run `app` on `request`: yields a `ResponseStart`, then chunks of the body; `Progress` before
    and between where the request asks for a record.

    `pace()` is asked before each chunk for the seconds to gather it.

    Raises:
        IncompleteResponseError: the application returned in the middle of its response.
        Whatever the application raises before its response is complete.
    """
    exchange = _Exchange(request)
    task = asyncio.create_task(_run(app, request, exchange))
    try:
        chunk, complete = await exchange.take()
        while not chunk and not complete:
            yield exchange.item(chunk)
            chunk, complete = await exchange.take()
        if not exchange.started:
            await task
            raise IncompleteResponseError(f"no response to {request.method} {request.path}")
        yield exchange.start(chunk)
        while not complete:
            chunk, complete = await exchange.take(pace())
            if item := exchange.item(chunk):
                yield item
        if not exchange.whole:
            await task
            raise IncompleteResponseError(
                f"the response to {request.method} {request.path} broke off"
            )
    finally:
        await exchange.disconnect()
        await _finish(task)


async def _run(app: AsgiApp, request: HttpRequest, exchange: _Exchange) -> None:
    with about_request(request.headers), traffic_of(request.headers):
        try:
            with recording(exchange.record):
                await app(_scope(request), exchange.receive, exchange.send)
        except Exception as error:
            logger.warning("%s %s failed: %r", request.method, request.path, error)
            raise
        finally:
            await exchange.end()
            logger.debug("%s %s: %s", request.method, request.path, exchange.summary)


async def _finish(task: asyncio.Task[None]) -> None:
    done, _ = await asyncio.wait({task}, timeout=DISCONNECT_GRACE_S)
    if not done:
        task.cancel()
    with contextlib.suppress(asyncio.CancelledError, Exception):
        await task


def _scope(request: HttpRequest) -> Message:
    return {
        "type": "http",
        "asgi": _ASGI_VERSION,
        "http_version": "1.1",
        "method": request.method,
        "scheme": "http",
        "path": request.path,
        "raw_path": request.path.encode(),
        "query_string": request.query_string,
        "root_path": "",
        "headers": list(request.headers),
        "client": None,
        "server": None,
        "state": {},
    }
