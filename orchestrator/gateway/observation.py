"""ASGI middleware that counts, times and logs the answers of the inference routes."""

import logging
import time
from collections.abc import Callable
from http import HTTPStatus

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from orchestrator.gateway.metrics import GatewayMetrics
from orchestrator.gateway.routes import INFERENCE_ROUTES

logger = logging.getLogger(__name__)


def trace_id(scope: Scope) -> str | None:
    """Of the trace that the request is part of, if that is kept (W3C's `traceparent`)."""
    for name, value in scope["headers"]:
        if name.lower() == b"traceparent":
            parts = value.decode("latin-1").split("-")
            if len(parts) == 4 and len(parts[1]) == 32 and parts[3][-1:] in _KEPT:
                return str(parts[1])
    return None


_KEPT = frozenset("13579bdf")
"""Last digits of flags that say so."""
CLIENT_LEFT = 499
"""Code of a request whose client left before the answer was complete (nginx's number)."""


class Observation:
    """Counts each answer once, when it is complete or given up."""

    def __init__(
        self,
        app: ASGIApp,
        metrics: GatewayMetrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] not in INFERENCE_ROUTES:
            await self._app(scope, receive, send)
            return
        began_s = self._clock()
        first_byte_s: float | None = None
        code = CLIENT_LEFT
        complete = False

        async def observe(message: Message) -> None:
            nonlocal first_byte_s, code, complete
            await send(message)
            if message["type"] == "http.response.start":
                code = message["status"]
                return
            if first_byte_s is None and message.get("body"):
                first_byte_s = self._clock() - began_s
            complete = not message.get("more_body", False)

        try:
            await self._app(scope, receive, observe)
        finally:
            code, took_s = code if complete else CLIENT_LEFT, self._clock() - began_s
            self._metrics.count_answer(scope["path"], code, took_s, first_byte_s, trace_id(scope))
            log_answer(scope, code, took_s)


def log_answer(scope: Scope, code: int, took_s: float) -> None:
    """Errors of the server always, other answers where the level asks for that."""
    level = logging.WARNING if code >= HTTPStatus.INTERNAL_SERVER_ERROR else logging.DEBUG
    logger.log(
        level, "%s %s: status %d after %.3f s", scope["method"], scope["path"], code, took_s,
        extra={"status": code},
    )  # fmt: skip
