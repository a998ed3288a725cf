"""`POST /api/v1/what-if`: what other pool sizes would come to. It plans and changes nothing, so a
key for reading is enough."""

import asyncio
from dataclasses import asdict
from enum import StrEnum
from http import HTTPStatus
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from orchestrator.api.errors import error_response, unavailable
from orchestrator.api.models import ClusterView, PlacementView
from orchestrator.api.request_body import read_body
from orchestrator.gateway.last_known import LastKnown, NothingKnown
from orchestrator.telemetry.observer import Observer
from orchestrator.telemetry.snapshot import Snapshot
from orchestrator.telemetry.what_if import Answer, Impossible, ShardRoom, what_if
from placement.types import FloatArray

BODY_BYTES = 16 << 10
BODY_TIMEOUT_S = 10.0
MOST_SHARDS = 1024


class LoadChoice(StrEnum):
    """What load is planned for."""

    WINDOW = "window"  # of the last look with traffic
    TOTAL = "total"  # since the gateway began
    EVEN = "even"  # all experts alike


class Question(BaseModel):
    """pools: sizes of those that would change. min_copies: unset: as many as there are now."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    pools: dict[str, Annotated[int, Field(ge=0, le=MOST_SHARDS)]] = Field(default_factory=dict)
    load: LoadChoice = LoadChoice.TOTAL
    min_copies: Annotated[int, Field(ge=1, le=16)] | None = None


class WhatIf:
    """The route. One plan is made at a time."""

    def __init__(self, observer: Observer, last: LastKnown) -> None:
        self._observer = observer
        self._last = last
        self._planning = asyncio.Lock()

    def routes(self) -> list[Route]:
        return [Route("/api/v1/what-if", self.ask, methods=["POST"])]

    async def ask(self, request: Request) -> Response:
        body = await read_body(request, BODY_BYTES, BODY_TIMEOUT_S)
        try:
            question = Question.model_validate_json(body or b"{}")
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            return error_response(HTTPStatus.BAD_REQUEST, f"{where}: {first['msg']}")
        if self._planning.locked():
            message = "another plan is being made: ask again when it is"
            return error_response(HTTPStatus.TOO_MANY_REQUESTS, message)
        async with self._planning:
            return await self._answer(question)

    async def _answer(self, question: Question) -> Response:
        snapshot = self._observer.snapshot
        try:
            cluster, placement = await self._last.cluster(), await self._last.placement()
        except NothingKnown as error:
            return unavailable(str(error))
        if snapshot is None or placement.value.epoch is None:
            return unavailable("nothing is placed yet")
        try:
            answer = await asyncio.to_thread(
                _plan, question, snapshot, cluster.value, placement.value
            )
        except Impossible as error:
            return error_response(HTTPStatus.CONFLICT, str(error), "impossible", may_retry=False)
        return JSONResponse({**asdict(answer), "load": question.load.value})


def _plan(
    question: Question, snapshot: Snapshot, cluster: ClusterView, placement: PlacementView
) -> Answer:
    load = _load(question.load, snapshot, placement)
    least = question.min_copies or max(1, placement.least_copies)
    return what_if(load, _shards(snapshot, cluster), placement, question.pools, least)


def _load(choice: LoadChoice, snapshot: Snapshot, placement: PlacementView) -> FloatArray:
    """[L, E]; even where nothing was served yet."""
    counts = snapshot.totals.counts
    if choice is LoadChoice.WINDOW and snapshot.window is not None:
        counts = snapshot.window.counts
    shape = (len(placement.layers), placement.experts)
    if choice is LoadChoice.EVEN or counts.shape != shape or not counts.any():
        return np.ones(shape)
    return counts.astype(np.float64)


def _shards(snapshot: Snapshot, cluster: ClusterView) -> list[ShardRoom]:
    """Those that hold something: what one copy takes follows from what they hold."""
    speeds = snapshot.speeds
    return [
        ShardRoom(
            place.id,
            place.pool,
            place.capacity_bytes // (place.held_bytes // place.copies),
            speeds.get(place.id, 1.0),
            place.held_bytes // place.copies,
        )
        for place in cluster.places
        if place.kind == "shard" and place.copies and place.held_bytes >= place.copies
    ]
