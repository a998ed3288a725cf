"""ASGI middleware: every request of the inference routes has an id, and log lines about it say so.

The id is the client's `x-request-id`, or one that is made here. The engine gets it too; vLLM makes
an answer's id of it, the same one whichever engine answers.
"""

import uuid

from starlette.types import ASGIApp, Receive, Scope, Send

from actors.request_logs import REQUEST_ID, about_request
from orchestrator.gateway.routes import INFERENCE_ROUTES


class RequestIds:
    """Inside of `Tracing`, whose context the lines name."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] not in INFERENCE_ROUTES:
            await self._app(scope, receive, send)
            return
        headers = list(scope["headers"])
        if REQUEST_ID not in {name.lower() for name, _ in headers}:
            headers.append((REQUEST_ID, uuid.uuid4().hex.encode()))
        with about_request(tuple(headers)):
            await self._app({**scope, "headers": headers}, receive, send)
