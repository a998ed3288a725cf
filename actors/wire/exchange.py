"""One call over one link, written and read by Python."""

from dataclasses import dataclass

from actors.wire.frame import (
    HEADER_BYTES,
    Fault,
    FrameError,
    FrameKind,
    Header,
    body_bytes,
    unpack_header,
)
from actors.wire.link import ClientLink, LinkClosed, RemoteError, larger
from actors.wire.segment import ANSWERED, FREE, POSTED, SERVER_ASLEEP, Segment, slot_of
from actors.wire.slots import STATE, Parts, describe_part, new_parts

ANSWERS = {
    FrameKind.CALL: FrameKind.RESULT,
    FrameKind.ROUTE: FrameKind.ROUTED,
    FrameKind.PROBE: FrameKind.PROBED,
}


@dataclass(frozen=True, slots=True, eq=False)
class Posted:
    """A call in a slot; `parts` is a table of this one, see `slots`."""

    link: ClientLink
    segment: Segment
    parts: Parts

    @property
    def slot(self) -> int:
        return slot_of(int(self.parts[0, STATE]))

    def read(self) -> tuple[Header, memoryview]:
        """The answer, which is there; valid until `free`.

        Raises:
            LinkClosed: it is no frame. RemoteError.
        """
        return read_answer(self.link, self.segment, self.slot)

    @property
    def is_answered(self) -> bool:
        return self.segment.state(self.slot) == ANSWERED

    def free(self) -> bool:
        """Give the slot back; False where the answer is still to come."""
        answered = self.is_answered
        if answered:
            self.segment.set(self.slot, FREE)
        return answered


class Room:
    """A free slot of a link, for one call. The link to use from now on is `link`."""

    def __init__(self, link: ClientLink, header: Header) -> None:
        """header: of the call. Raises LinkClosed."""
        self._header = header
        self._answer = ANSWERS[header.kind]
        coding = header.coding
        self._answer_bytes = body_bytes(self._answer, header.rows, header.hidden, coding=coding)
        self.link = link_with_room(link, header.body_bytes, self._answer_bytes)
        self._segment = self.link.segment
        self._slot = self._segment.find(FREE)
        request = self._segment.request(self._slot)
        header.pack_into(request)
        self.body = request[HEADER_BYTES : HEADER_BYTES + header.body_bytes]
        """To be written before `post`."""

    def post(self) -> Posted:
        """Raises LinkClosed. Ring the bell when everything is posted."""
        call = self._header
        parts = new_parts(1)
        expected = (
            self._answer, call.call_id, call.rows, call.hidden, call.coding, self._answer_bytes,
        )  # fmt: skip
        describe_part(parts, 0, self._segment, self._slot, expected)
        self._segment.set(self._slot, POSTED)
        if self._segment.words[SERVER_ASLEEP]:
            self.link.notify()
        return Posted(self.link, self._segment, parts)


def link_with_room(link: ClientLink, request_bytes: int, answer_bytes: int) -> ClientLink:
    """This link or a larger one with a free slot for such bodies. Raises LinkClosed."""
    shape = link.segment.shape
    if (
        request_bytes <= shape.request_bytes
        and answer_bytes <= shape.answer_bytes
        and link.segment.find(FREE) >= 0
    ):
        return link
    return link.grown(larger(shape, request_bytes, answer_bytes))


def read_answer(link: ClientLink, segment: Segment, slot: int) -> tuple[Header, memoryview]:
    """Header and body of an answered slot.

    Raises:
        LinkClosed: it is no frame. RemoteError: an ERROR frame.
    """
    answer = segment.answer(slot)
    try:
        header = unpack_header(bytes(answer[:HEADER_BYTES]))
    except FrameError as error:
        raise LinkClosed(f"{link.address}: {error}") from error
    body = answer[HEADER_BYTES : HEADER_BYTES + header.body_bytes]
    if len(body) < header.body_bytes:
        raise LinkClosed(f"{link.address} answered {header}, which does not fit")
    if header.kind is FrameKind.ERROR:
        raise RemoteError(bytes(body).decode(errors="replace"), Fault(header.rows))
    return header, body
