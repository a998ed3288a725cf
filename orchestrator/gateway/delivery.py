"""What a client has of its answer and what the model put out for it, whichever engines did.

An engine that continues a request answers it from the first byte on, with the same events as the
engine before, as long as both speak of the same outputs of the model (`Emitted`). So the client
gets whole events only, they are counted, and of a later engine's answer that many are left out.
Two things in an event come from the engine and not from the request: the time of the answer's
beginning, which stays that of the first engine, and the random ids of tool calls, which an answer
tells once.
"""

import re
from dataclasses import replace

from actors.messages import Emitted, HttpRequest, Record

EVENT_END = b"\n\n"
COMMENT = b":"
"""How an event begins that only keeps a connection open."""

_CREATED = re.compile(rb'(?<!\\)"created":\s*\d+')


class Delivery:
    """One request on its way through one or more engines."""

    def __init__(self, request: HttpRequest) -> None:
        self._request = request
        self._record: list[Emitted] = []
        self._recorded = request.record
        self._created: bytes | None = None
        self._sent_events = 0
        self._left_out_events = 0
        self._partial = b""
        self.begun = False
        """Whether the client was sent a part of the answer."""

    @property
    def can_move(self) -> bool:
        """Whether another engine may answer: from the start, or from where this one was."""
        return self._recorded or not self.begun

    @property
    def tokens(self) -> int:
        """Tokens that another engine would continue from."""
        if not self._recorded:
            return 0
        return sum(len(emitted.token_ids) for emitted in self._record)

    @property
    def is_whole(self) -> bool:
        """Whether this engine's answer reached what the client had before."""
        return self._left_out_events == 0

    def request(self) -> HttpRequest:
        """What to ask the next engine."""
        assert self.can_move
        if not self._recorded:
            self._record, self._recorded = [], self._request.record
        self._left_out_events, self._partial = self._sent_events, b""
        return replace(self._request, emitted=tuple(self._record))

    def note(self, emitted: Record | None) -> None:
        """Continue the record, or find that there is none."""
        if emitted is None:
            self._recorded = False
        else:
            self._record += emitted

    def events(self, chunk: bytes) -> bytes:
        """The whole events of an engine's stream that the client does not have."""
        *events, self._partial = (self._partial + chunk).split(EVENT_END)
        return b"".join(self._dated(event) + EVENT_END for event in events if self._is_new(event))

    def rest(self) -> bytes:
        """What the stream ended with after its last whole event."""
        rest, self._partial = self._partial, b""
        return rest

    def _is_new(self, event: bytes) -> bool:
        if event.startswith(COMMENT):
            return True
        if self._left_out_events:
            self._left_out_events -= 1
            return False
        self._sent_events += 1
        return True

    def _dated(self, event: bytes) -> bytes:
        """The event with the time that the first one named."""
        if self._created is None and (found := _CREATED.search(event)):
            self._created = found[0]
        return event if self._created is None else _CREATED.sub(self._created, event, count=1)
