"""What travels between the gateway and an engine for one HTTP exchange.

A call to `Engine.handle(HttpRequest)` answers with a stream: one `ResponseStart` followed by any
number of `bytes` chunks of the body, or a single `Refusal`. The types are plain and immutable, and
import nothing but the standard library, so that the gateway needs no vLLM.
"""

from dataclasses import dataclass

ERROR_HEADER = b"x-expertmesh-error"
EXPERTS_UNAVAILABLE = "experts_unavailable"
"""What an engine says in that header of a 503, and as the code of a stream's error event: the
request needs experts that no living shard holds. The engine itself is well, and any other would say
the same."""

Headers = tuple[tuple[bytes, bytes], ...]
"""Header lines as ASGI has them: lower-case names, latin-1 bytes."""


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """One whole request: the body is read by the gateway, which bounds its size."""

    method: str
    path: str
    query_string: bytes = b""
    headers: Headers = ()
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class ResponseStart:
    """Status and headers, with the part of the body that was ready by then.

    It is sent with the first bytes of the body, not before: an engine that dies earlier has told
    the client nothing, so the request can go to another engine.
    """

    status: int
    headers: Headers
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Refusal:
    """The engine did not serve the request, and no part of it was answered: try another engine.

    died: the engine took the request and died while it had it, perhaps because of it.
    """

    reason: str
    died: bool = False


EngineReply = ResponseStart | Refusal | bytes
