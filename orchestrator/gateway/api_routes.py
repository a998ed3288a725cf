"""`/api/v1/`: what the mesh is, as JSON, and the verbs that change it.

Answers carry `stale_s`: 0 where the controller has just said so, else the age of what it said last;
503 only where it never said anything to this gateway.
"""

import asyncio
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any

from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from orchestrator.api.errors import error_response, unavailable
from orchestrator.api.models import ClusterView, EventView, VerbAnswer
from orchestrator.api.request_body import read_body
from orchestrator.api.verbs import BODIES, Ask
from orchestrator.clients.mesh import MeshClient, MeshLostError
from orchestrator.control.lifecycle import Kind
from orchestrator.gateway.admin import AdminCheck
from orchestrator.gateway.config import GatewayConfig
from orchestrator.gateway.event_stream import follow
from orchestrator.gateway.fault_tolerance import status_body
from orchestrator.gateway.last_known import Known, LastKnown, NothingKnown

PREFIX = "/api/v1"
MOST_EVENTS = 1000
MOST_FOLLOWERS = 64
VERB_BODY_BYTES = 64 << 10
VERB_TIMEOUT_S = 120.0
"""Planning for a large mesh takes most of it."""

Handler = Callable[[Request], Awaitable[Response]]


class Api:
    """Handlers of the status API and of the verbs."""

    def __init__(
        self, config: GatewayConfig, mesh: MeshClient, last: LastKnown, admin: AdminCheck
    ) -> None:
        self._config = config
        self._mesh = mesh
        self._last = last
        self._admin = admin
        self._followers = 0

    def routes(self) -> list[Route]:
        views: dict[str, Callable[[ClusterView], Any]] = {
            "pools": lambda view: {"pools": _json(view.pools)},
            "nodes": lambda view: {"nodes": _json(view.nodes)},
            "shards": lambda view: {
                "shards": _json(p for p in view.places if p.kind == Kind.SHARD)
            },
            "plan": _plan,
        }
        routes = [Route(f"{PREFIX}/{name}", self._part(pick)) for name, pick in views.items()]
        return [
            Route(f"{PREFIX}/cluster", self._part(lambda view: view.model_dump(mode="json"))),
            *routes,
            Route(f"{PREFIX}/placement", self.placement),
            Route(f"{PREFIX}/transactions", self.transactions),
            Route(f"{PREFIX}/events", self.events),
            Route("/v1/fault_tolerance/status", self.fault_tolerance),
            *(
                Route(f"{PREFIX}/{verb}", self._verb(verb, body), methods=["POST"])
                for verb, body in BODIES.items()
            ),
        ]

    # -- questions

    async def placement(self, _: Request) -> Response:
        """`PlacementView`."""
        try:
            known = await self._last.placement()
        except NothingKnown as error:
            return unavailable(str(error))
        return _answer(known.value.model_dump(mode="json"), known)

    async def transactions(self, _: Request) -> Response:
        """The one under way, and the phases of those that the newest history tells of."""
        try:
            cluster, events = await self._last.cluster(), await self._last.events()
        except NothingKnown as error:
            return unavailable(str(error))
        running = cluster.value.transaction
        body = {
            "running": running.model_dump(mode="json") if running else None,
            "transactions": by_transaction(events.value),
        }
        return _answer(body, max(cluster, events, key=lambda known: known.stale_s))

    async def events(self, request: Request) -> Response:
        """Lines of history after `after` (negative: the last ones); `follow`: as they come."""
        after = _number(request, "after", request.headers.get("last-event-id", "-100"))
        limit = _number(request, "limit", str(MOST_EVENTS))
        if not 1 <= limit <= MOST_EVENTS:
            raise HTTPException(HTTPStatus.BAD_REQUEST, f"limit is from 1 to {MOST_EVENTS}")
        if request.query_params.get("follow", "false").lower() in ("1", "true", "yes", ""):
            return self._follow(after)
        try:
            async with asyncio.timeout(2.0):
                found = await self._mesh.history(max(after, -limit), limit)
            return JSONResponse({"events": _json(found), "stale_s": 0.0})
        except (MeshLostError, TimeoutError):
            pass
        try:
            known = await self._last.events()
        except NothingKnown as error:
            return unavailable(str(error))
        kept = known.value
        chosen = kept[after:] if after < 0 else [e for e in kept if e.number > after]
        return _answer({"events": _json(chosen[:limit])}, known)

    def _follow(self, after: int) -> Response:
        if self._followers >= MOST_FOLLOWERS:
            message = f"{MOST_FOLLOWERS} clients follow the events already: close one"
            return error_response(HTTPStatus.TOO_MANY_REQUESTS, message)

        async def stream() -> Any:
            self._followers += 1
            try:
                async for chunk in follow(self._mesh, after):
                    yield chunk
            finally:
                self._followers -= 1

        headers = {"cache-control": "no-store"}
        return StreamingResponse(stream(), media_type="text/event-stream", headers=headers)

    async def fault_tolerance(self, _: Request) -> Response:
        """The engines' health, as vLLM's `/fault_tolerance/status` tells it."""
        try:
            known = await self._last.cluster()
        except NothingKnown as error:
            return unavailable(str(error))
        headers = {"x-expertmesh-stale-s": f"{known.stale_s:.3f}"}
        return JSONResponse(status_body(known.value), headers=headers)

    def _part(self, pick: Callable[[ClusterView], Any]) -> Handler:
        async def handler(_: Request) -> Response:
            try:
                known = await self._last.cluster()
            except NothingKnown as error:
                return unavailable(str(error))
            return _answer(pick(known.value), known)

        return handler

    # -- verbs

    def _verb(self, verb: str, body: type[Ask]) -> Handler:
        async def handler(request: Request) -> Response:
            if refused := self._admin.refusal(request):
                return refused
            text = await read_body(request, VERB_BODY_BYTES, self._config.body_timeout_s)
            try:
                return await self._do(verb, body.model_validate_json(text or b"{}"))
            except ValidationError as error:
                return error_response(HTTPStatus.BAD_REQUEST, _say(error), "invalid_body")

        return handler

    async def _do(self, verb: str, asked: Ask) -> Response:
        target, number = asked.words()
        try:
            async with asyncio.timeout(VERB_TIMEOUT_S):
                done, text = await self._mesh.ask(verb, target, number, asked.dry_run)
        except TimeoutError:
            return unavailable(f"the controller took longer than {VERB_TIMEOUT_S:g} s; see events")
        except MeshLostError as error:
            return unavailable(f"{error}; what runs serves on, changes need the controller")
        if not done:
            return error_response(HTTPStatus.CONFLICT, text, "refused", may_retry=False)
        answer = VerbAnswer(verb=verb, text=text, dry_run=asked.dry_run)
        return JSONResponse(answer.model_dump(mode="json"))


def by_transaction(events: list[EventView]) -> list[dict[str, Any]]:
    """Newest first: number, last phase, and every line of it."""
    found: dict[int, list[EventView]] = {}
    for event in events:
        if event.transaction:
            found.setdefault(event.transaction, []).append(event)
    return [
        {"id": id, "phase": lines[-1].step, "reason": lines[0].reason, "events": _json(lines)}
        for id, lines in sorted(found.items(), reverse=True)
    ]


def _shards(view: ClusterView) -> dict[str, Any]:
    return {"shards": _json(place for place in view.places if place.kind == Kind.SHARD)}


def _plan(view: ClusterView) -> dict[str, Any]:
    """What is planned, what keeps it from being planned, and what plans have to keep to."""
    about = ("epoch", "transaction", "planning", "rolling", "rules")
    body = view.model_dump(mode="json", include=set(about))
    return {**body, "problem": view.problems.get("plan", "")}


def _json(models: Any) -> list[Any]:
    return [model.model_dump(mode="json") for model in models]


def _answer(body: dict[str, Any], known: Known[Any]) -> Response:
    return JSONResponse({**body, "stale_s": round(known.stale_s, 3)})


def _number(request: Request, name: str, default: str) -> int:
    text = request.query_params.get(name, default)
    try:
        return int(text)
    except ValueError:
        message = f"{name} is {text!r}: give a whole number"
        raise HTTPException(HTTPStatus.BAD_REQUEST, message) from None


def _say(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"]))
    return f"{where}: {first['msg']}" if where else f"the body is no JSON object: {first['msg']}"
