"""What becomes of a request that was computed, or could not be: its line, or another try.

Lines have OpenAI's form: `id`, `custom_id`, `response` (`status_code`, `request_id`, `body`) and
`error`. A line with status 200 is for the output file, every other for the error file.
"""

import json
import secrets
from dataclasses import dataclass
from http import HTTPStatus

from orchestrator.batch.records import Deferred, Leased, Settled
from orchestrator.batch.request_rows import ISOLATED_AFTER

MAX_ENGINES_LOST = ISOLATED_AFTER + 1
"""A request that was alone when one more engine was lost is what the engine was lost to."""

FIRST_PAUSE_S = 1.0
LAST_PAUSE_S = 60.0
"""Pauses before a request is tried again double from the first to the last."""

_TRANSIENT = frozenset(
    {
        HTTPStatus.REQUEST_TIMEOUT,
        HTTPStatus.TOO_MANY_REQUESTS,
        HTTPStatus.BAD_GATEWAY,
        HTTPStatus.SERVICE_UNAVAILABLE,
        HTTPStatus.GATEWAY_TIMEOUT,
        HTTPStatus.INTERNAL_SERVER_ERROR,
    }
)


@dataclass(frozen=True, slots=True)
class Reply:
    """An engine's whole answer."""

    status: int
    body: bytes


def after_reply(
    request: Leased, reply: Reply, max_attempts: int, now_s: float
) -> Settled | Deferred:
    """An engine answered: a line, unless another time may do better."""
    if reply.status in _TRANSIENT and request.attempts + 1 < max_attempts:
        return _again(request, now_s)
    try:
        value = json.loads(reply.body)
    except ValueError:
        value = {"error": {"message": reply.body.decode(errors="replace")}}
    ok = reply.status == HTTPStatus.OK
    usage = (value.get("usage") if isinstance(value, dict) else None) or {}
    line = {
        "id": _line_id(),
        "custom_id": request.custom_id,
        "response": {
            "status_code": reply.status,
            "request_id": f"req_{secrets.token_hex(16)}",
            "body": value,
        },
        "error": None,
    }
    return Settled(
        request.job,
        request.line,
        ok,
        json.dumps(line, ensure_ascii=False, separators=(",", ":")).encode(errors="replace"),
        int(usage.get("prompt_tokens") or 0),
        int(usage.get("completion_tokens") or 0),
    )


def after_failure(
    request: Leased, reason: str, max_attempts: int, now_s: float
) -> Settled | Deferred:
    """An engine could not finish this request, and lives."""
    if request.attempts + 1 < max_attempts:
        return _again(request, now_s)
    message = f"tried {max_attempts} times, the last: {reason}"
    line = error_line(_line_id(), request.custom_id, "request_failed", message)
    return Settled(request.job, request.line, False, line)


def after_lost_engine(request: Leased, reason: str, now_s: float) -> Settled | Deferred:
    """The engine that had this request is lost, perhaps to it."""
    lost = request.engines_lost + 1
    if lost < MAX_ENGINES_LOST:
        return Deferred(request.job, request.line, now_s, request.attempts, lost)
    message = f"{lost} engines were lost with this request, the last when it was alone: {reason}"
    line = error_line(_line_id(), request.custom_id, "engine_lost", message)
    return Settled(request.job, request.line, False, line)


def not_taken(request: Leased, now_s: float) -> Deferred:
    """No engine took it, so nothing was tried."""
    ready_at = now_s + FIRST_PAUSE_S
    return Deferred(request.job, request.line, ready_at, request.attempts, request.engines_lost)


def error_line(line_id: str, custom_id: str, code: str, message: str) -> bytes:
    """The line of a request that has no response."""
    value = {
        "id": line_id,
        "custom_id": custom_id,
        "response": None,
        "error": {"code": code, "message": message},
    }
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def _again(request: Leased, now_s: float) -> Deferred:
    pause_s = min(FIRST_PAUSE_S * 2.0 ** min(request.attempts, 16), LAST_PAUSE_S)
    return Deferred(
        request.job, request.line, now_s + pause_s, request.attempts + 1, request.engines_lost
    )


def _line_id() -> str:
    return f"batch_req_{secrets.token_hex(16)}"
