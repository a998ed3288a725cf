"""The built-in page: static files without any data in them, so they need no key.

The page asks for a key where one is needed and sends it with its requests for data. The charts'
library is the one that the installed package `plotly` ships. Nothing comes from another host, and
the page's policy lets nothing else in.
"""

import gzip
import hashlib
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

_ORCHESTRATOR = Path(__file__).resolve().parents[1]
_TYPES = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}
PAGE_PATH = "/ui"
CHARTS = "plotly.min.js"
POLICY = (
    "default-src 'none'; script-src 'self'; connect-src 'self'; img-src 'self' data: blob:; "
    # The charts' library makes style elements of its own.
    "style-src 'self' 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_COMPRESS_FROM = 1024


def page_folder() -> Path:
    """In `dashboards/page` of a checkout, in `orchestrator/page` once installed."""
    checkout = _ORCHESTRATOR.parent / "dashboards" / "page"
    return checkout if checkout.is_dir() else _ORCHESTRATOR / "page"


def page_routes(prefix: str) -> list[Route]:
    """prefix: of the gateway's routes, without a slash at its end."""

    def home(_: Request) -> Response:
        return RedirectResponse(f"{prefix}{PAGE_PATH}")

    def page(request: Request) -> Response:
        return _answer(request, page_folder() / "index.html", prefix)

    return [Route("/", home), Route(PAGE_PATH, page), *asset_routes(prefix)]


def asset_routes(prefix: str) -> list[Route]:
    """Of the files that pages are made of."""

    def asset(path: Path) -> Route:
        return Route(
            f"{PAGE_PATH}/{path.name}",
            lambda request: _answer(request, path, prefix),
            methods=["GET"],
        )

    assets = [p for p in sorted(page_folder().iterdir()) if p.suffix in {".js", ".css", ".svg"}]
    return [asset(path) for path in [*assets, _charts()]]


def page_answer(request: Request, name: str, prefix: str = "") -> Response:
    """One of the folder's pages."""
    return _answer(request, page_folder() / name, prefix)


def open_paths() -> frozenset[str]:
    """Paths that need no key."""
    return frozenset(route.path for route in page_routes(""))


def _charts() -> Path:
    spec = find_spec("plotly")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "package_data" / CHARTS


@cache
def _read(path: Path, prefix: str) -> tuple[bytes, bytes, str]:
    """(content, the same compressed, its tag)."""
    content = path.read_bytes()
    if path.suffix == ".html":
        text = content.decode().replace("{{prefix}}", prefix)
        content = text.replace("{{charts}}", version("plotly")).encode()
    return content, gzip.compress(content, 6), hashlib.sha256(content).hexdigest()[:16]


def _answer(request: Request, path: Path, prefix: str) -> Response:
    content, packed, tag = _read(path, prefix)
    headers = {
        "etag": f'"{tag}"',
        "cache-control": "no-cache",
        "content-security-policy": POLICY,
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "vary": "accept-encoding",
    }
    if tag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    if len(content) >= _COMPRESS_FROM and "gzip" in request.headers.get("accept-encoding", ""):
        content, headers["content-encoding"] = packed, "gzip"
    return Response(content, media_type=_TYPES[path.suffix], headers=headers)
