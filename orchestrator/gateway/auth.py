"""API keys: `Authorization: Bearer KEY`, off unless keys are configured.

Only digests of the keys are kept and handed to other processes. Digests all have one length and are
compared in constant time, every one of them for every request, so that the time of an answer tells
nothing about the keys.
"""

import hashlib
import hmac
from collections.abc import Mapping
from http import HTTPStatus

from starlette.types import ASGIApp, Receive, Scope, Send

from orchestrator.api.errors import error_response
from orchestrator.gateway.page import open_paths

OPEN_PATHS = frozenset({"/health"}) | open_paths()
"""Paths that need no key: a load balancer has none, and the page's files hold no data."""


def digest(key: str) -> bytes:
    """What the gateway keeps of a key."""
    return hashlib.sha256(key.encode()).digest()


KEY_NAME = "expertmesh.key_name"
"""In the scope of a request: the name of its API key, None where it has none."""


class KeyCheck:
    """ASGI middleware: 401 for a request without one of the keys."""

    def __init__(
        self, app: ASGIApp, digests: frozenset[bytes], names: Mapping[str, str] | None = None
    ) -> None:
        """names: of keys that have one, by the hex digits of their digests."""
        self._app = app
        self._digests = digests
        self._names = names or {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS:
            await self._app(scope, receive, send)
            return
        offered = _offered(scope)
        if self._admits(offered):
            name = self._names.get(offered.hex()) if offered is not None else None
            await self._app({**scope, KEY_NAME: name}, receive, send)
            return
        message = "no valid API key: send `Authorization: Bearer KEY`"
        response = error_response(HTTPStatus.UNAUTHORIZED, message, "invalid_api_key")
        await response(scope, receive, send)

    def _admits(self, offered: bytes | None) -> bool:
        if not self._digests:
            return True
        if offered is None:
            return False
        # Compared with every key: the time must not tell which one matched.
        matches = [hmac.compare_digest(offered, known) for known in self._digests]
        return any(matches)


def _offered(scope: Scope) -> bytes | None:
    """Digest of the key that the request has."""
    header = dict(scope["headers"]).get(b"authorization", b"")
    scheme, _, key = header.partition(b" ")
    return hashlib.sha256(key.strip()).digest() if scheme.lower() == b"bearer" else None
