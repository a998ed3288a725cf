"""Keeps bodies of requests from piling up in Ray Serve, which takes them as fast as they come.

Between a client and the gateway's application a body passes two queues of Serve that have no limit,
one in its proxy and one in the replica. So the two ends agree on a window: `BodyWindow`, in the
proxy, takes nothing from the socket while that many bytes are not consumed yet; `Consumption`, in
the application, tells what it has consumed, in messages of their own type that go with those of
the answer and end in the proxy. Then the kernel's buffers are full, and the client waits.

Serve loads the proxy's end where `RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH` names it. In a cluster
that was started without it scopes have no window, and nothing is told. Another application on the
same proxy tells nothing: there the window opens after a while.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

BODY_ENVIRONMENT = {
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": (
        "orchestrator.gateway.body_window.proxy_middlewares"
    ),
    # Proxy and replica hand bodies over as objects of Ray's store. By default those that are done
    # with are freed a hundred at a time, and what a body had filled until then stays mapped.
    "RAY_free_objects_batch_size": "4",
}
"""For the processes of Ray, before they start."""
WINDOW_BYTES = 4 << 20
"""Of one request, in all queues together."""
TOTAL_BYTES = 32 << 20
"""Of all requests through one proxy, not counting what each may have consumed without telling."""
TOLD_AT = 4
"""What was consumed is told whenever it is a window divided by this."""
SILENCE_S = 30.0
"""An application that has told nothing for so long, with its window full, never will."""
CONSUMED = "expertmesh.consumed"
"""Type of a message; its `bytes` were consumed since the one before."""
SCOPE_KEY = "expertmesh.body_window"
"""Bytes of the window, in the scope of a request. It is no header, so no client can set it."""


@dataclass(slots=True)
class Body:
    """under_way: bytes that were passed on and are not told as consumed. told: whether any were.
    free: passes without limit."""

    under_way: int = 0
    told: bool = False
    free: bool = False


class Room:
    """Has bodies wait for room, each in its own window and all in one."""

    def __init__(self, window_bytes: int, total_bytes: int, silence_s: float = SILENCE_S) -> None:
        self._window_bytes = window_bytes
        self._total_bytes = total_bytes
        self._silence_s = silence_s
        self._freed = asyncio.Condition()
        self._waiting = 0
        self.under_way = 0

    @contextlib.asynccontextmanager
    async def body(self) -> AsyncIterator[Body]:
        """One that has no bytes under way once the block is left, whatever was consumed."""
        body = Body()
        try:
            yield body
        finally:
            await self._free(body, body.under_way)

    async def enter(self, body: Body, size: int) -> None:
        """Wait until a message of `size` bytes may pass. The last one may be larger than what is
        left, for messages are not split."""
        while size and not body.free and not self._has_room(body):
            await self._wait(body)
        if size and not body.free:
            self._count(body, size)

    async def leave(self, body: Body, size: int) -> None:
        """So many bytes were consumed."""
        body.told = True
        await self._free(body, size)

    async def _wait(self, body: Body) -> None:
        self._waiting += 1
        try:
            async with asyncio.timeout(None if body.told else self._silence_s), self._freed:
                await self._freed.wait_for(lambda: self._has_room(body))
        except TimeoutError:
            body.free = not body.told
        finally:
            self._waiting -= 1

    def _has_room(self, body: Body) -> bool:
        return body.under_way < self._window_bytes and self.under_way < self._total_bytes

    async def _free(self, body: Body, size: int) -> None:
        self._count(body, -size)
        if self._waiting:  # most bodies are small, and nobody waits for them
            async with self._freed:
                self._freed.notify_all()

    def _count(self, body: Body, size: int) -> None:
        self.under_way -= self._counted(body)
        body.under_way += size
        self.under_way += self._counted(body)

    def _counted(self, body: Body) -> int:
        return max(0, body.under_way - self._window_bytes // TOLD_AT)


class BodyWindow:
    """ASGI middleware of Serve's proxy."""

    def __init__(
        self, app: ASGIApp, window_bytes: int = WINDOW_BYTES, total_bytes: int = TOTAL_BYTES
    ) -> None:
        self._app = app
        self._window_bytes = window_bytes
        self._room = Room(window_bytes, total_bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        async with self._room.body() as body:

            async def receive_in_window() -> Message:
                message = await receive()
                await self._room.enter(body, _size(message))
                return message

            async def send_rest(message: Message) -> None:
                if message["type"] == CONSUMED:
                    await self._room.leave(body, message["bytes"])
                else:
                    await send(message)

            told = {**scope, SCOPE_KEY: self._window_bytes}
            await self._app(told, receive_in_window, send_rest)


class Consumption:
    """ASGI middleware of the application: a message counts as consumed when the next is asked
    for."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        window_bytes = scope.get(SCOPE_KEY)
        if window_bytes is None:
            await self._app(scope, receive, send)
            return
        consumed = 0

        async def receive_and_tell() -> Message:
            nonlocal consumed
            if consumed >= window_bytes // TOLD_AT:
                await send({"type": CONSUMED, "bytes": consumed})
                consumed = 0
            message = await receive()
            consumed += _size(message)
            return message

        await self._app(scope, receive_and_tell, send)


def proxy_middlewares() -> list[Middleware]:
    """What Serve's proxy calls when it starts."""
    return [Middleware(BodyWindow)]


def _size(message: Message) -> int:
    return len(message.get("body", b""))
