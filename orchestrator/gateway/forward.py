"""Carries one request to an engine and its answer back to the client.

Nothing reaches the client before the first bytes of the body exist, so until then a lost engine
costs nothing: the request goes to another one. Answers that are not event streams are kept until
they are whole, for the same reason. Once a stream has begun it cannot move; if its engine is lost
it ends with an error event.

A lost engine may have been lost to the request itself. So a request goes to one other engine, and
when that is lost too the client is told not to send it again. Engines that refuse, because they
drain, lose nothing by it and do not count.
"""

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator
from http import HTTPStatus

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from actors.engine.messages import EngineReply, Headers, HttpRequest, Refusal, ResponseStart
from orchestrator.gateway.engine_pool import EnginePool, PooledEngine
from orchestrator.gateway.errors import error_event, error_response, unavailable
from orchestrator.gateway.mesh import (
    EngineError,
    EngineFailedError,
    EngineLostError,
    EngineRefusedError,
)
from orchestrator.gateway.metrics import GatewayMetrics
from orchestrator.gateway.routes import RETURNED_HEADERS

logger = logging.getLogger(__name__)

MAX_ENGINES_LOST = 2
"""Engines that one request may be lost with."""

ERROR_HEADER = b"x-expertmesh-error"
EXPERTS_UNAVAILABLE = b"experts_unavailable"
"""What an engine says in that header of a 503: the request needs experts that no living shard
holds. The engine itself is well, and any other would say the same."""


class ClientStalledError(Exception):
    """The client is there but takes nothing of its answer."""


class ForwardedResponse(Response):
    """A Starlette response that an engine writes.

    It runs until the answer is complete or the client is gone; then the engine is told to stop.
    """

    def __init__(
        self, request: HttpRequest, pool: EnginePool, metrics: GatewayMetrics, send_timeout_s: float
    ) -> None:
        super().__init__()
        self._request = request
        self._pool = pool
        self._metrics = metrics
        self._send_timeout_s = send_timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_in_time(message: Message) -> None:
            try:
                async with asyncio.timeout(self._send_timeout_s):
                    await send(message)
            except TimeoutError as error:
                raise ClientStalledError from error

        answer = asyncio.create_task(self._answer(scope, receive, send_in_time))
        watch = asyncio.create_task(_client_gone(receive))
        try:
            done, _ = await asyncio.wait({answer, watch}, return_when=asyncio.FIRST_COMPLETED)
            if answer in done:
                await answer
        except ClientStalledError:
            logger.warning(
                "%s: the client took nothing of its answer for %g s and is cut off",
                self._request.path,
                self._send_timeout_s,
            )
        finally:
            await _cancel(watch)
            await _cancel(answer)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        tried: set[str] = set()
        lost = 0
        reason = "no engine is ready"
        while lost < MAX_ENGINES_LOST and (engine := self._pool.choose(tried)):
            if tried:
                self._metrics.count_retry()
            tried.add(engine.info.actor_name)
            try:
                with self._pool.lease(engine):
                    await self._try(engine, scope, receive, send)
                return
            except EngineFailedError as error:
                status = HTTPStatus.INTERNAL_SERVER_ERROR
                await error_response(status, str(error))(scope, receive, send)
                return
            except (EngineLostError, EngineRefusedError) as error:
                lost += isinstance(error, EngineLostError)
                reason = f"engine {engine.info.id}: {error}"
                logger.warning("%s %s: %s", self._request.method, self._request.path, reason)
                self._pool.drop(engine)
        answer = unavailable(reason) if lost < MAX_ENGINES_LOST else _ended_engines(reason)
        await answer(scope, receive, send)

    async def _try(self, engine: PooledEngine, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer from `engine`; raises `EngineError` if it could not and nothing was sent."""
        async with contextlib.aclosing(engine.client.handle(self._request)) as replies:
            first = await anext(replies, None)
            if isinstance(first, Refusal):
                raise (EngineLostError if first.died else EngineRefusedError)(first.reason)
            if not isinstance(first, ResponseStart):
                raise EngineLostError("it gave no answer")
            if _is_event_stream(first.headers):
                await self._stream(first, replies, send)
                return
            body = first.body + b"".join([_chunk(reply) async for reply in replies])
            if (ERROR_HEADER, EXPERTS_UNAVAILABLE) in first.headers:
                answer = unavailable(_message_of(body), EXPERTS_UNAVAILABLE.decode())
                await answer(scope, receive, send)
                return
            headers = [*_returned(first.headers), (b"content-length", str(len(body)).encode())]
            await send(_start(first.status, headers))
            await send(_body(body, more=False))

    async def _stream(
        self, first: ResponseStart, replies: AsyncIterator[EngineReply], send: Send
    ) -> None:
        await send(_start(first.status, _returned(first.headers)))
        await send(_body(first.body, more=True))
        try:
            async for reply in replies:
                await send(_body(_chunk(reply), more=True))
        except EngineError as error:
            logger.warning("a stream of %s was cut: %s", self._request.path, error)
            self._metrics.count_cut_stream()
            message = "the engine was lost while it generated; send the request again"
            await send(_body(error_event(message, "engine_lost"), more=True))
        await send(_body(b"", more=False))


def _ended_engines(reason: str) -> Response:
    message = f"{MAX_ENGINES_LOST} engines were lost with this request; the last: {reason}"
    status = HTTPStatus.INTERNAL_SERVER_ERROR
    return error_response(status, message, "engine_lost", may_retry=False)


def _message_of(body: bytes) -> str:
    """The message of an error in OpenAI's form."""
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, TypeError, LookupError):
        return "experts are missing"


def _chunk(reply: EngineReply) -> bytes:
    assert isinstance(reply, bytes)
    return reply


def _is_event_stream(headers: Headers) -> bool:
    return any(k == b"content-type" and v.startswith(b"text/event-stream") for k, v in headers)


def _returned(headers: Headers) -> list[tuple[bytes, bytes]]:
    return [(name, value) for name, value in headers if name in RETURNED_HEADERS]


def _start(status: int, headers: list[tuple[bytes, bytes]]) -> Message:
    return {"type": "http.response.start", "status": status, "headers": headers}


def _body(body: bytes, more: bool) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": more}


async def _client_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    # What it raised was raised to the caller already, or nobody is left to hear it.
    await asyncio.gather(task, return_exceptions=True)
