"""Answers of vLLM's application to requests that lacked experts, as the gateway knows them.

Before anything was sent: status 503 with the header `x-expertmesh-error: experts_unavailable`, also
where vLLM had a stream's first event with an error in it ready. In a stream that has begun: an
error event with the code `experts_unavailable`. What vLLM would say instead (status 503, or an
event without a code of its own) is replaced.
"""

import json
from collections.abc import Awaitable, Callable, MutableMapping
from contextvars import ContextVar
from http import HTTPStatus
from typing import Any

from actors.messages import ERROR_HEADER, EXPERTS_UNAVAILABLE

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]
Receive = Callable[[], Awaitable[Message]]
AsgiApp = Callable[[Message, Receive, Send], Awaitable[None]]

_BODY = json.dumps(
    {
        "error": {
            "message": "experts that this request needs have no live replica",
            "type": "service_unavailable_error",
            "param": None,
            "code": EXPERTS_UNAVAILABLE,
        }
    }
).encode()
_ERROR_EVENT = b'data: {"error"'
"""How vLLM's OpenAI streams begin an error."""


class _Answer:
    """One answer: its start is held back until it is known whether experts were missing."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._start: Message | None = None
        self._over = False
        self.experts_missing = False

    async def send(self, message: Message) -> None:
        if self._over:
            return
        if message["type"] == "http.response.start":
            self._start = message
            return
        if self._start is not None and self.experts_missing:
            await self._refuse()
            return
        if self._start is not None:
            start, self._start = self._start, None
            await self._send(start)
        if self.experts_missing and message.get("body", b"").startswith(_ERROR_EVENT):
            message = {**message, "body": b"data: " + _BODY + b"\n\n"}
        await self._send(message)

    async def _refuse(self) -> None:
        self._over = True
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(_BODY)).encode()),
            (ERROR_HEADER, EXPERTS_UNAVAILABLE.encode()),
        ]
        status = HTTPStatus.SERVICE_UNAVAILABLE.value
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
        await self._send({"type": "http.response.body", "body": _BODY, "more_body": False})


_current: ContextVar[_Answer | None] = ContextVar("expertmesh_answer", default=None)


def note_missing_experts() -> None:
    """Called where the request of this context is found to lack experts."""
    answer = _current.get()
    if answer is not None:
        answer.experts_missing = True


def telling_missing_experts(app: AsgiApp) -> AsgiApp:
    """`app`, with the answers to requests that lacked experts as described above."""

    async def wrapped(scope: Message, receive: Receive, send: Send) -> None:
        answer = _Answer(send)
        # What vLLM starts for this request, tasks too, inherits the variable.
        token = _current.set(answer)
        try:
            await app(scope, receive, answer.send)
        finally:
            _current.reset(token)

    return wrapped
