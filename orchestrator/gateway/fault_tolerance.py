"""The engines' health in the form of vLLM 0.32's `GET /fault_tolerance/status`, which its clients
poll: `{"schema_version": 1, "total_engines": N, "engines": [{"id", "status", "fault_info"}]}` with
`healthy`, `unhealthy` (and why) or `dead`."""

from typing import Any

from orchestrator.api.models import ClusterView, PlaceView
from orchestrator.control.lifecycle import Kind, Life

SCHEMA_VERSION = 1

_STATUS = {
    Life.READY: "healthy",
    Life.DRAINING: "healthy",
    Life.STARTING: "unhealthy",
    Life.SUSPECT: "unhealthy",
    Life.DEAD: "dead",
    Life.FAILED: "dead",
    Life.STOPPED: "dead",
}


def status_body(view: ClusterView) -> dict[str, Any]:
    engines = [place for place in view.places if place.kind == Kind.ENGINE]
    return {
        "schema_version": SCHEMA_VERSION,
        "total_engines": len(engines),
        "engines": [_engine(place, number) for number, place in enumerate(engines)],
    }


def _engine(place: PlaceView, number: int) -> dict[str, Any]:
    digits = place.id.rpartition("-")[2]
    status = _STATUS[Life(place.life)]
    body = {"id": int(digits) if digits.isdigit() else number, "status": status}
    return {**body, "fault_info": place.why} if status == "unhealthy" else body
