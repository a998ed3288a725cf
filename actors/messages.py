"""What travels between the gateway and an engine for one HTTP exchange.

A call to `Engine.handle(HttpRequest)` answers with a stream: one `ResponseStart` followed by any
number of `bytes` chunks of the body. A `Refusal` ends it at any point; what came before it stays
true. If the request asks for a record, the engine also tells what the model put out (`Emitted`), in
the order in which it did: with a `ResponseStart`, and with `Progress`, which may come before it and
stands for a chunk of the body after it. Whoever has the request and the whole record can have
another engine continue it (`HttpRequest.emitted`).

The types are plain and immutable, and import nothing but the standard library, so that the gateway
needs no vLLM.
"""

from dataclasses import dataclass

ERROR_HEADER = b"x-expertmesh-error"
EXPERTS_UNAVAILABLE = "experts_unavailable"
"""What an engine says in that header of a 503, and as the code of a stream's error event: the
request needs experts that no living shard holds. The engine itself is well, and any other would say
the same."""

Headers = tuple[tuple[bytes, bytes], ...]
"""Header lines as ASGI has them: lower-case names, latin-1 bytes."""


TokenLogprobs = tuple[tuple[int, float, int | None, str | None], ...]
"""(token id, logprob, rank, text) of the sampled token, then of the likeliest ones."""


@dataclass(frozen=True, slots=True)
class Emitted:
    """Tokens that vLLM's engine client handed to its OpenAI layer in one go."""

    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...] | None = None
    """One entry for each token; None where the request asks for none."""
    finish_reason: str | None = None
    stop_reason: int | str | None = None


Record = tuple[Emitted, ...]


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """One whole request: the body is read by the gateway, which bounds its size.

    record: whether the engine tells what the model puts out.
    emitted: the record that other engines gave of this request. The engine answers as if it had
    put that out itself, from the first byte on, and continues with the next token.
    """

    method: str
    path: str
    query_string: bytes = b""
    headers: Headers = ()
    body: bytes = b""
    record: bool = False
    emitted: Record = ()


@dataclass(frozen=True, slots=True)
class ResponseStart:
    """Status and headers, with the part of the body that was ready by then.

    It is sent with the first bytes of the body, not before: an engine that dies earlier has told
    the client nothing, so the request can go to another engine.

    emitted: continues the record; None where the request cannot be continued by another engine.
    """

    status: int
    headers: Headers
    body: bytes = b""
    emitted: Record | None = None

    @property
    def is_event_stream(self) -> bool:
        kinds = [value for name, value in self.headers if name == b"content-type"]
        return any(kind.startswith(b"text/event-stream") for kind in kinds)


@dataclass(frozen=True, slots=True)
class Progress:
    """More of the record, at least as far as the bytes tell; `emitted` is as in `ResponseStart`."""

    emitted: Record | None
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Refusal:
    """The engine does not serve the request, or no more of it: try another engine.

    died: the engine took the request and died while it had it, perhaps because of it.
    """

    reason: str
    died: bool = False


EngineReply = ResponseStart | Progress | Refusal | bytes
