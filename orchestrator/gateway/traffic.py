"""Names the kind of traffic of each request, and tells what a kind asks of the experts.

A request's kind is what its header `X-ExpertMesh-Traffic` says, else the name of the API key that
it came with, else `default`. The engine gets the name in the same header, also one that continues
the request after another was lost.
"""

import asyncio
import difflib
import time
from collections.abc import Callable, Collection, Mapping
from http import HTTPStatus

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Scope

from actors.messages import Headers
from actors.traffic import DEFAULT, TRAFFIC_HEADER, Kinds, kind_in
from orchestrator.api.errors import error_response, unavailable
from orchestrator.clients.mesh import MeshClient, MeshLostError
from orchestrator.gateway.auth import KEY_NAME

TIMEOUT_S = 10.0


class TrafficKinds:
    """given: names that are told apart; empty: the first that come."""

    def __init__(
        self, given: Collection[str] = (), clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._kinds = Kinds(given)
        self._clock = clock

    def kind_of(self, scope: Scope) -> str:
        named = kind_in(scope["headers"])
        if named == DEFAULT:
            named = scope.get(KEY_NAME) or DEFAULT
        return self._kinds.admit(named, self._clock())


def told_kind(kind: str) -> Headers:
    """How an engine is told."""
    return () if kind == DEFAULT else ((TRAFFIC_HEADER, kind.encode()),)


async def load_of_kind(mesh: MeshClient, request: Request) -> Response:
    """`KindLoad` of the request's `kind` and, if it names one, `content`."""
    asked: Mapping[str, str] = request.query_params
    kind, content = asked["kind"], asked.get("content")
    try:
        async with asyncio.timeout(TIMEOUT_S):
            found = await mesh.traffic_load(kind, content)
            if found is not None:
                return JSONResponse(await asyncio.to_thread(found.to_json))
            known = {told.kind for told in (await mesh.expert_load()).traffic}
    except (MeshLostError, TimeoutError) as error:
        return unavailable(str(error) or "the controller does not answer")
    return error_response(HTTPStatus.NOT_FOUND, none_of(kind, content, known), "unknown_kind")


def none_of(kind: str, content: str | None, known: Collection[str]) -> str:
    """Why there is no such load."""
    if kind in known:
        return f"traffic of kind {kind} has had no {content}"
    near = difflib.get_close_matches(kind, known, 1)
    hint = f"; did you mean {near[0]}?" if near else ""
    names = ", ".join(sorted(known)) or "none yet"
    return f"there was no traffic of kind {kind}{hint} (kinds: {names})"
