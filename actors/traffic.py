"""Kinds of traffic: what a caller tells apart, such as chat, code or a tenant.

The gateway names the kind of a request and tells it the engine in a header. Names are few and
short, so that what is kept by kind is bounded whoever sends: a name beyond the first few, or one
that is none, is `OTHER`.
"""

import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from actors.messages import Headers

TRAFFIC_HEADER = b"x-expertmesh-traffic"

DEFAULT = "default"
"""Of a request of which nothing is known."""
OTHER = "other"
"""Of all names that find no place among the kinds."""
BATCH = "batch"
"""Of batch jobs that name none."""
ALWAYS = frozenset({DEFAULT, OTHER, BATCH})
MAX_KINDS = 8
"""Kinds that are told apart, besides these."""
FORGET_S = 24 * 3600.0

NAME = r"[a-z0-9][a-z0-9_-]{0,62}"
_NAME = re.compile(NAME)

_current: ContextVar[str] = ContextVar("expertmesh_traffic", default=DEFAULT)


def is_kind(name: str) -> bool:
    return _NAME.fullmatch(name) is not None


class Kinds:
    """Which names have a place: those given, or else the first `MAX_KINDS` that come. One that has
    not come for `FORGET_S` gives its place to a new one."""

    def __init__(self, given: Collection[str] = ()) -> None:
        self._given = frozenset(given)
        self._seen: dict[str, float] = {}
        """When each last came; the one that has not come for longest is first."""

    def admit(self, name: str, now_s: float) -> str:
        """`name`, or what stands for it."""
        if name in ALWAYS or name in self._given:
            return name
        if self._given or not is_kind(name):
            return OTHER
        if name not in self._seen and len(self._seen) >= MAX_KINDS:
            oldest, seen_s = next(iter(self._seen.items()))
            if now_s - seen_s < FORGET_S:
                return OTHER
            del self._seen[oldest]
        self._seen.pop(name, None)
        self._seen[name] = now_s
        return name

    def has(self, name: str) -> bool:
        return name in ALWAYS or name in self._given or name in self._seen


def kind_in(headers: Headers) -> str:
    """What the headers say, as they say it."""
    for name, value in headers:
        if name.lower() == TRAFFIC_HEADER:
            return value.decode("latin-1").strip().lower()
    return DEFAULT


@contextmanager
def traffic_of(headers: Headers) -> Iterator[None]:
    """What this task and those that it starts generate is for the request with these headers."""
    token = _current.set(kind_in(headers))
    try:
        yield
    finally:
        _current.reset(token)


def current_kind() -> str:
    return _current.get()
