"""Carries one request to an engine and its answer back to the client.

An engine that is lost costs the client a pause. While nothing was answered the request goes to
another engine as it is; an answer that is not an event stream is kept until it is whole. If the
engine told what the model had put out, the other one continues from there, streams too
(`delivery`). What cannot be continued ends with an error event once its stream has begun.

A lost engine may have been lost to the request itself. So a request that was lost with two engines
without a new token in between is tried on no third one, and the client is told not to send it
again. Engines that refuse, because they drain, lose nothing by it and do not count. How often a
request is continued at all is `gateway.migration_limit`. With no engine ready a request waits for
one, `gateway.engine_wait_s` at most.
"""

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from http import HTTPStatus

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from actors.messages import (
    ERROR_HEADER,
    EXPERTS_UNAVAILABLE,
    EngineReply,
    Headers,
    HttpRequest,
    Progress,
    Refusal,
    ResponseStart,
)
from orchestrator.api.errors import error_event, error_response, unavailable
from orchestrator.clients.engine_pool import EnginePool, PooledEngine
from orchestrator.clients.mesh import EngineFailedError, EngineLostError, EngineRefusedError
from orchestrator.gateway.config import GatewayConfig
from orchestrator.gateway.delivery import Delivery
from orchestrator.gateway.metrics import GatewayMetrics
from orchestrator.gateway.routes import RETURNED_HEADERS

logger = logging.getLogger(__name__)

MAX_ENGINES_LOST = 2
"""Engines that one request may be lost with before it has got a token further."""

ENGINE_LOST = "engine_lost"
LOST_MESSAGE = "the engine was lost while it generated; send the request again"


class ClientStalledError(Exception):
    """The client is there but takes nothing of its answer."""


class ForwardedResponse(Response):
    """A Starlette response that an engine writes.

    It runs until the answer is complete or the client is gone; then the engine is told to stop.
    """

    def __init__(
        self,
        request: HttpRequest,
        pool: EnginePool,
        metrics: GatewayMetrics,
        config: GatewayConfig,
    ) -> None:
        super().__init__()
        self._request = request
        self._delivery = Delivery(request)
        self._pool = pool
        self._metrics = metrics
        self._config = config

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_in_time(message: Message) -> None:
            try:
                async with asyncio.timeout(self._config.send_timeout_s):
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
                self._config.send_timeout_s,
            )
        finally:
            await _cancel(watch)
            await _cancel(answer)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        delivery, tried = self._delivery, list[PooledEngine]()
        lost = continued = 0
        reason = "no engine is ready"
        answer: Response | None = None
        while engine := await self._pool.wait_for_one(tried, self._config.engine_wait_s):
            tried.append(engine)
            before = delivery.tokens
            try:
                with self._pool.lease(engine):
                    await self._try(engine, scope, receive, send)
                return
            except EngineFailedError as error:
                reason = str(error)
                answer = error_response(HTTPStatus.INTERNAL_SERVER_ERROR, reason)
                break
            except (EngineLostError, EngineRefusedError) as error:
                reason = f"engine {engine.info.id}: {error}"
                logger.warning("%s %s: %s", self._request.method, self._request.path, reason)
                self._pool.drop(engine)
                lost += isinstance(error, EngineLostError) and delivery.tokens == before
            continued += bool(delivery.tokens)
            spent = lost == MAX_ENGINES_LOST or continued > self._config.migration_limit
            if spent or not delivery.can_move:
                answer = _ended_engines(len(tried), reason)
                break
            self._metrics.count_move(continued=bool(delivery.tokens))
        if delivery.begun:
            await self._cut(reason, send)
        else:
            await (answer or unavailable(reason))(scope, receive, send)

    async def _cut(self, reason: str, send: Send) -> None:
        """End a stream that has begun and will not be whole."""
        logger.warning("a stream of %s was cut: %s", self._request.path, reason)
        self._metrics.count_cut_stream()
        await send(_body(error_event(LOST_MESSAGE, ENGINE_LOST), more=True))
        await send(_body(b"", more=False))

    async def _try(self, engine: PooledEngine, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer from `engine`; raises `EngineError` where it did not get to the end."""
        async with contextlib.aclosing(self._replies(engine)) as replies:
            first = await self._first(replies)
            if first.is_event_stream:
                await self._stream(first, replies, send)
                return
            body = first.body + b"".join([self._chunk(reply) async for reply in replies])
            if self._delivery.begun:
                # The rest of the stream, if a request that was well before is refused now.
                await send(_body(b"data: " + body + b"\n\n", more=True))
                await send(_body(b"", more=False))
                return
            if (ERROR_HEADER, EXPERTS_UNAVAILABLE.encode()) in first.headers:
                answer = unavailable(_message_of(body), EXPERTS_UNAVAILABLE)
                await answer(scope, receive, send)
                return
            headers = [*_returned(first.headers), (b"content-length", str(len(body)).encode())]
            await send(_start(first.status, headers))
            await send(_body(body, more=False))

    async def _replies(self, engine: PooledEngine) -> AsyncGenerator[EngineReply, None]:
        request = self._delivery.request()
        async with contextlib.aclosing(engine.client.handle(request)) as replies:
            while (reply := await engine.hear(anext(replies, None))) is not None:
                yield reply

    async def _first(self, replies: AsyncIterator[EngineReply]) -> ResponseStart:
        """How the answer starts."""
        async for reply in replies:
            if isinstance(reply, ResponseStart):
                self._delivery.note(reply.emitted)
                return reply
            if self._chunk(reply):
                break
        raise EngineLostError("it gave no answer")

    def _chunk(self, reply: EngineReply) -> bytes:
        """The bytes of a reply after the start."""
        if isinstance(reply, Refusal):
            raise (EngineLostError if reply.died else EngineRefusedError)(reply.reason)
        if isinstance(reply, Progress):
            self._delivery.note(reply.emitted)
            return reply.body
        assert isinstance(reply, bytes)
        return reply

    async def _stream(
        self, first: ResponseStart, replies: AsyncIterator[EngineReply], send: Send
    ) -> None:
        delivery = self._delivery
        if not delivery.begun:
            delivery.begun = True
            await send(_start(first.status, _returned(first.headers)))
        if events := delivery.events(first.body):
            await send(_body(events, more=True))
        async for reply in replies:
            if events := delivery.events(self._chunk(reply)):
                await send(_body(events, more=True))
        if not delivery.is_whole:
            raise EngineFailedError("another engine's answer is shorter than what was sent of it")
        await send(_body(delivery.rest(), more=False))


def _ended_engines(number: int, reason: str) -> Response:
    message = f"{number} engines were lost with this request; the last: {reason}"
    status = HTTPStatus.INTERNAL_SERVER_ERROR
    return error_response(status, message, ENGINE_LOST, may_retry=False)


def _message_of(body: bytes) -> str:
    """The message of an error in OpenAI's form."""
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, TypeError, LookupError):
        return "experts are missing"


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
