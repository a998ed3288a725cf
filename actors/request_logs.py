"""Which request a log line is about: its id (`x-request-id`) and the trace that it is part of.

Gateway and engine say so once for what they do for a request, and every line that is written
meanwhile carries both, vLLM's own lines and libraries' too (`logs`).
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

from actors.messages import Headers

REQUEST_ID = b"x-request-id"
TRACE_PARENT = b"traceparent"
MAX_ID_CHARACTERS = 128

_ODD = re.compile(r"[^\w.:/=+-]", re.ASCII)
_PARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")

_about: ContextVar[Mapping[str, str] | None] = ContextVar("about", default=None)


@contextmanager
def about_request(headers: Headers) -> Iterator[None]:
    """What this task and those that it starts write is about the request with these headers."""
    token = _about.set(_fields_of(headers))
    try:
        yield
    finally:
        _about.reset(token)


def request_fields() -> Mapping[str, str]:
    """`request` and `trace` of what runs now, as far as there are any."""
    return _about.get() or {}


def _fields_of(headers: Headers) -> Mapping[str, str]:
    known = {name.lower(): value.decode("latin-1") for name, value in headers}
    fields = {}
    if id := known.get(REQUEST_ID):
        # Clients choose it: a line for people stays one line.
        fields["request"] = _ODD.sub("?", id[:MAX_ID_CHARACTERS])
    if parent := _PARENT.fullmatch(known.get(TRACE_PARENT, "")):
        fields["trace"] = parent[1]
    return fields
