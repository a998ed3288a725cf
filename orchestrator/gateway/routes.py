"""Which of vLLM's routes are reachable through the gateway.

vLLM's application has many more (LoRA loading, profiling, scaling, sleeping, ...), and each version
adds some: so this is a list of what is let through, and everything else is 404.
"""

from actors.request_logs import REQUEST_ID

INFERENCE_ROUTES: dict[str, frozenset[str]] = {
    "/v1/models": frozenset({"GET"}),
    "/v1/chat/completions": frozenset({"POST"}),
    "/v1/completions": frozenset({"POST"}),
    "/v1/responses": frozenset({"POST"}),
    "/tokenize": frozenset({"POST"}),
    "/detokenize": frozenset({"POST"}),
    "/version": frozenset({"GET"}),
}
"""Path -> methods that are handed to an engine."""

CONTINUED_ROUTES = frozenset({"/v1/chat/completions", "/v1/completions"})
"""Paths whose answers vLLM makes of one line of outputs, which another engine can continue."""


FORWARDED_HEADERS = frozenset(
    {b"content-type", b"accept", REQUEST_ID, b"traceparent", b"tracestate"}
)
"""Request headers that an engine gets to see; in particular never `authorization`."""

RETURNED_HEADERS = frozenset({b"content-type", b"cache-control", b"x-request-id", b"retry-after"})
"""Response headers of an engine that the client gets to see."""
