"""One request to one engine, the answer taken whole."""

from actors.messages import (
    ERROR_HEADER,
    EXPERTS_UNAVAILABLE,
    HttpRequest,
    Refusal,
    ResponseStart,
)
from actors.traffic import BATCH, TRAFFIC_HEADER
from orchestrator.batch.answers import Reply
from orchestrator.clients.mesh import EngineClient, EngineLostError, EngineRefusedError

_HEADERS = ((b"content-type", b"application/json"), (b"accept", b"application/json"))


async def ask(engine: EngineClient, path: str, body: bytes, kind: str = BATCH) -> Reply:
    """Cancelling this aborts the request in the engine. kind: of traffic.

    Raises:
        EngineError: there is no whole answer.
    """
    request = HttpRequest("POST", path, b"", (*_HEADERS, (TRAFFIC_HEADER, kind.encode())), body)
    replies = await engine.answer(request)
    first = replies[0] if replies else None
    if isinstance(first, Refusal):
        raise (EngineLostError if first.died else EngineRefusedError)(first.reason)
    if not isinstance(first, ResponseStart):
        raise EngineLostError("it gave no answer")
    if (ERROR_HEADER, EXPERTS_UNAVAILABLE.encode()) in first.headers:
        return Reply(503, first.body)
    return Reply(
        first.status, first.body + b"".join(r for r in replies[1:] if isinstance(r, bytes))
    )
