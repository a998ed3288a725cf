"""Who may change the mesh: `Authorization: Bearer` with one of EXPERTMESH_ADMIN_KEYS.

Without admin keys only a mesh that listens on loopback takes changes, as whoever reaches it has a
login on its machine. A page in that person's browser must not: what a browser says comes from
another origin is refused; a change needs a JSON content type, which browsers send to another site
only after asking it, and a Host header of this machine, which a foreign name that leads here does
not have.
"""

import hashlib
import hmac
import ipaddress
from http import HTTPStatus
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import Response

from orchestrator.api.errors import error_response


class AdminCheck:
    """Looks at requests that would change something."""

    def __init__(self, digests: frozenset[bytes], host: str) -> None:
        """digests: of the admin keys (`auth.digest`); host: where the gateway listens."""
        self._digests = digests
        self._host = host

    def refusal(self, request: Request) -> Response | None:
        """The answer for who may not; None for who may."""
        if _is_of_another_page(request):
            message = "changes are refused: a page of another site asked for this one"
            return error_response(HTTPStatus.FORBIDDEN, message, "cross_site")
        if not request.headers.get("content-type", "").startswith("application/json"):
            message = "a change needs the header `Content-Type: application/json`"
            return error_response(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, message, "no_json")
        return self.refusal_of_reader(request)

    def refusal_of_reader(self, request: Request) -> Response | None:
        """The same for what only those may read who may change something."""
        if self._digests:
            return None if self._admits(request) else _no_key(request)
        if not is_loopback(self._host):
            return error_response(
                HTTPStatus.FORBIDDEN,
                f"changes are refused: the mesh listens on {self._host} and has no admin keys; set "
                "EXPERTMESH_ADMIN_KEYS where it is started",
                "no_admin_keys",
            )
        if not is_loopback(request.url.hostname or ""):
            return error_response(
                HTTPStatus.FORBIDDEN,
                "changes are refused: without EXPERTMESH_ADMIN_KEYS they are taken at a loopback "
                "address only, such as http://127.0.0.1",
                "no_admin_keys",
            )
        return None

    def _admits(self, request: Request) -> bool:
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        offered = hashlib.sha256(key.strip().encode()).digest()
        # Compared with every key: the time must not tell which one matched.
        matches = [hmac.compare_digest(offered, known) for known in self._digests]
        return any(matches) and scheme.lower() == "bearer"


def _is_of_another_page(request: Request) -> bool:
    """Whether a browser says that a page of another origin sent this; other clients say nothing.

    Old ones, and pages of plain HTTP on other machines, say their origin only."""
    if (site := request.headers.get("sec-fetch-site")) is not None:
        return site not in ("none", "same-origin")
    origin = request.headers.get("origin")
    return origin is not None and urlsplit(origin).netloc != request.headers.get("host", "")


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches that address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _no_key(request: Request) -> Response:
    status = HTTPStatus.FORBIDDEN
    if "authorization" not in request.headers:
        status = HTTPStatus.UNAUTHORIZED
    message = "no valid admin key: send `Authorization: Bearer KEY` with one of the mesh's "
    return error_response(status, message + "EXPERTMESH_ADMIN_KEYS", "invalid_admin_key")
