"""ASGI middleware: every 429 and 503 says when to come back."""

from http import HTTPStatus

from starlette.types import ASGIApp, Message, Receive, Scope, Send

NAME = b"retry-after"
STATUSES = frozenset({HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE})


class RetryAfter:
    """Adds `Retry-After` where the answer has none, whoever wrote it: gateway or engine."""

    def __init__(self, app: ASGIApp, seconds: int) -> None:
        self._app = app
        self._line = (NAME, str(seconds).encode())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def add(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] in STATUSES:
                headers = list(message["headers"])
                if all(name.lower() != NAME for name, _ in headers):
                    headers.append(self._line)
                message = {**message, "headers": headers}
            await send(message)

        await self._app(scope, receive, add)
