"""Client side of a data link: slots that a transport moves.

A call is written into a free slot of the link's segment, its state becomes POSTED, and `notify`
tells the transport. Some time later the slot is ANSWERED: because the server, which shares the
memory, wrote so, or because `progress` received the answer and put it there. Whoever posted frees
the slot. So whatever fills, waits for and adds up calls knows slots only (`slots`, `waiting`), and
a transport knows nothing of what they carry.
"""

from typing import TYPE_CHECKING, Protocol

from actors.wire.address import Address
from actors.wire.frame import Fault
from actors.wire.segment import MAX_SLOTS, Segment, SegmentShape, shape_for

if TYPE_CHECKING:
    from actors.wire.device_area import DeviceArea

CONNECT_TIMEOUT_S = 5.0
CALLS_IN_FLIGHT = 4
"""Calls a client may post before it waits for one."""
FIRST_REQUEST_BYTES = 4 << 20
FIRST_ANSWER_BYTES = 8 << 20


class LinkClosed(ConnectionError):
    """The peer is gone: end of file, reset, or a frame that cannot be read."""


class LinkTimeout(LinkClosed):
    """The peer did not answer before the deadline; the link cannot be used again."""


class RemoteError(RuntimeError):
    """The peer answered with an ERROR frame: it is alive and says why it cannot serve the call.

    fault: whether the same peer would, another time (see `Fault`).
    """

    def __init__(self, text: str, fault: Fault) -> None:
        super().__init__(text)
        self.fault = fault


class ClientLink(Protocol):
    """One connection to a server of frames. For one thread, and nothing of it blocks.

    address: of the server; incarnation: as it said in WELCOME.
    segment: where calls are posted now.
    is_polled: answers come in by `progress` only; else the server writes them itself, and the
        socket tells of wake-ups and of the server's end.
    closed: `close` was called; calls in the segment are not answered any more.
    area: device memory for the rows of calls, a slot for each of the segment's, if there is any.
    """

    address: Address
    incarnation: int
    segment: Segment
    is_polled: bool
    closed: bool
    area: "DeviceArea | None"

    def fileno(self) -> int:
        """The socket: when it can be read, and while `wants_write` when it can be written,
        `progress` is to be called."""
        ...

    @property
    def wants_write(self) -> bool: ...

    def notify(self) -> None:
        """What is POSTED has to go out. Raises LinkClosed."""
        ...

    def progress(self) -> None:
        """Send what can be sent, take in what came. Raises LinkClosed."""
        ...

    def grown(self, shape: SegmentShape) -> "ClientLink":
        """The link to use from now on, with a segment of this shape: this link or another one to
        the same server. Calls that are on their way are answered where they are.

        Raises LinkClosed.
        """
        ...

    @property
    def is_idle(self) -> bool:
        """The server owes no answer, in whatever segment."""
        ...

    def close(self) -> None: ...


FIRST_SHAPE = shape_for(FIRST_REQUEST_BYTES, FIRST_ANSWER_BYTES)


def larger(shape: SegmentShape, request_bytes: int, answer_bytes: int) -> SegmentShape:
    """A shape with room for one more call with such bodies: twice the length of what does not fit,
    or else twice the slots.

    Raises LinkClosed: there are as many slots as a segment may have.
    """
    request, answer = shape.request_bytes, shape.answer_bytes
    if request_bytes > request or answer_bytes > answer:
        return shape_for(
            2 * request_bytes if request_bytes > request else request,
            2 * answer_bytes if answer_bytes > answer else answer,
            shape.slots,
        )
    if shape.slots == MAX_SLOTS:
        raise LinkClosed(f"{MAX_SLOTS} calls are unanswered already")
    slots = min(2 * shape.slots, MAX_SLOTS)
    return SegmentShape(slots, shape.request_pages, shape.answer_pages)
