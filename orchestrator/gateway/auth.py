"""API keys: `Authorization: Bearer KEY`, off unless keys are configured.

Only digests of the keys are kept and handed to other processes. Digests all have one length and are
compared in constant time, every one of them for every request, so that the time of an answer tells
nothing about the keys.
"""

import hashlib
import hmac
from http import HTTPStatus
from typing import Annotated, Any

from pydantic import SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict
from starlette.types import ASGIApp, Receive, Scope, Send

from orchestrator.gateway.errors import error_response

OPEN_PATHS = frozenset({"/health"})
"""Paths that need no key: a load balancer has none."""


class ApiKeySettings(BaseSettings):
    """Keys from the environment: `EXPERTMESH_API_KEYS=key1,key2`."""

    model_config = SettingsConfigDict(env_prefix="EXPERTMESH_", extra="ignore")

    api_keys: Annotated[tuple[SecretStr, ...], NoDecode] = ()
    """Comma-separated; empty means that no key is asked for."""

    @field_validator("api_keys", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        if isinstance(value, str):
            return tuple(key for part in value.split(",") if (key := part.strip()))
        return value

    def digests(self) -> frozenset[bytes]:
        return frozenset(digest(key.get_secret_value()) for key in self.api_keys)


def digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


class KeyCheck:
    """ASGI middleware: 401 for a request without one of the keys."""

    def __init__(self, app: ASGIApp, digests: frozenset[bytes]) -> None:
        self._app = app
        self._digests = digests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS or self._admits(scope):
            await self._app(scope, receive, send)
            return
        message = "no valid API key: send `Authorization: Bearer KEY`"
        response = error_response(HTTPStatus.UNAUTHORIZED, message, "invalid_api_key")
        await response(scope, receive, send)

    def _admits(self, scope: Scope) -> bool:
        if not self._digests:
            return True
        header = dict(scope["headers"]).get(b"authorization", b"")
        scheme, _, key = header.partition(b" ")
        if scheme.lower() != b"bearer":
            return False
        offered = hashlib.sha256(key.strip()).digest()
        # A list, not a generator: `any` must not stop at the first match.
        return any([hmac.compare_digest(offered, known) for known in self._digests])
