"""Client side of a data link: the Protocol, its errors, and which transport reaches an address.

A caller asks for room for a body, writes the arrays straight into it, posts the frame, and later
waits for the answer. Several calls may be on their way; they are waited for in any order. The
kernel's end-of-file is how a dead peer is noticed; the deadline covers one that hangs.
"""

from typing import Protocol

from actors.wire.address import Address
from actors.wire.bell import Bell
from actors.wire.frame import Fault, Header

CONNECT_TIMEOUT_S = 5.0
CALLS_IN_FLIGHT = 4
"""Calls a client may post before it waits for one."""


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
    """One connection to a server of frames. For one thread.

    incarnation: of the server that was connected to, as it said in WELCOME.
    """

    incarnation: int

    def body(self, length: int, answer_length: int) -> memoryview:
        """Writable room for the next frame's body; valid until `post`.

        answer_length: of the body that the answer will have.
        Raises LinkClosed.
        """
        ...

    def post(self, header: Header) -> None:
        """Send the frame whose body was just written. Raises LinkClosed.

        Through shared memory it may wait for the bell: ring it when all frames are posted.
        """
        ...

    def wait(self, call_id: int, deadline_s: float) -> tuple[Header, memoryview]:
        """The answer to `call_id`; its body is valid until the next `body` or `wait`.

        deadline_s: `time.monotonic()` value.

        Raises:
            LinkTimeout, LinkClosed, RemoteError.
        """
        ...

    def forget(self, call_id: int) -> None:
        """The answer to `call_id` will not be waited for."""
        ...

    def close(self) -> None: ...


def open_link(address: Address, secret: bytes, bell: Bell) -> ClientLink:
    """Connect: through shared memory where `address` is a Unix socket, else TCP.

    bell: of this client, one for all its links.

    Raises:
        OSError: nobody listens, or no WELCOME came in time.
        HandshakeError: wrong peer or wrong secret.
    """
    if address.is_unix:
        from actors.wire.shared_link import SharedLink

        return SharedLink(address, bell)
    from actors.wire.stream_link import StreamLink

    return StreamLink(address, secret)
