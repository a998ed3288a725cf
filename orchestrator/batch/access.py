"""Who asks: the name that belongs to a request's API key."""

from starlette.requests import Request

from orchestrator.batch.settings import BatchSettings


def owner_of(request: Request, settings: BatchSettings) -> str:
    """Whether the key is valid at all the gateway has asked before (`gateway.auth`)."""
    _, _, key = request.headers.get("authorization", "").partition(" ")
    return settings.owner_of(key.strip().encode("latin-1"))
