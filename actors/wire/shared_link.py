"""`ClientLink` through shared memory, for a server on the same node.

Requests and answers are written in place in a segment (see `segment.py`). The Unix socket carries
the segment's and the bell's descriptor once, then the server's WELCOME, then single bytes that wake
this side where it sleeps. Its end-of-file is the peer's death. A client on a device offers memory
of it when it attaches; where the server takes that, rows need not go through the host
(`device_area`).
"""

import contextlib
import logging
import os
import socket

from actors.wire.address import Address, connect
from actors.wire.bell import Bell
from actors.wire.device_area import AreaShape, DeviceArea, create_area
from actors.wire.device_memory import DeviceMemory
from actors.wire.frame import HEADER_BYTES, FrameKind, Header
from actors.wire.handshake import HandshakeError, Welcome, read_welcome
from actors.wire.link import CONNECT_TIMEOUT_S, FIRST_SHAPE, LinkClosed
from actors.wire.retired_areas import RETIRED
from actors.wire.segment import Segment, SegmentShape, create_segment
from actors.wire.streams import PlainStream, receive_exactly

log = logging.getLogger(__name__)

BELLS_AT_ONCE = 64


def open_shared_link(
    address: Address, _: bytes, bell: Bell, device: DeviceMemory | None = None
) -> "SharedLink":
    """See `transports.open_link`; no secret is needed where the socket's folder guards it."""
    RETIRED.sweep()
    area, offer = _area(device, FIRST_SHAPE.slots)
    sock = connect(address, CONNECT_TIMEOUT_S)
    try:
        segment = _attach(sock, FIRST_SHAPE, bell, offer)
        welcome = _receive_welcome(sock)
    except BaseException:
        if area is not None:  # the server may have opened it
            RETIRED.add(sock, area)
        else:
            sock.close()
        raise
    link = SharedLink(address, bell, sock, segment, welcome.incarnation)
    if welcome.took_offer:
        link.area, link.device = area, device
    return link


def _area(device: DeviceMemory | None, slots: int) -> tuple[DeviceArea | None, bytes]:
    """An area of this device and what to offer; none where the driver cannot."""
    if device is None:
        return None, b""
    try:
        return create_area(device, AreaShape(slots))
    except (RuntimeError, OSError, ValueError) as error:
        log.warning("no memory of %s is shared: %s", device.device, error)
        return None, b""


def _receive_welcome(sock: socket.socket) -> Welcome:
    try:
        return read_welcome(receive_exactly(PlainStream(sock), HEADER_BYTES))
    except EOFError as error:
        raise HandshakeError(str(error)) from None


def _attach(
    sock: socket.socket, shape: SegmentShape, bell: Bell, offer: bytes, must: bool = False
) -> Segment:
    """must: the server takes the offer, or else the connection ends."""
    segment, fd = create_segment(shape)
    try:
        hello = bytearray(HEADER_BYTES)
        Header(FrameKind.ATTACH, 0, len(offer), rows=int(must)).pack_into(hello)
        socket.send_fds(sock, [hello, offer], [fd, bell.fd])
    finally:
        os.close(fd)
    return segment


class SharedLink:
    """See `ClientLink`. It grows by a second connection, which is used before its WELCOME came: the
    server's answers are the same whenever it takes the connection in.

    device: whose memory the server shares with this side; None: nothing is shared.
    """

    is_polled = False
    wants_write = False

    def __init__(
        self, address: Address, bell: Bell, sock: socket.socket, segment: Segment, incarnation: int,
        greeted: bool = True,
    ) -> None:  # fmt: skip
        self.address, self.incarnation, self.segment = address, incarnation, segment
        self.closed = False
        self.area: DeviceArea | None = None
        self.device: DeviceMemory | None = None
        self._bell = bell
        self._socket = sock
        self._socket.setblocking(False)
        self._greeting = bytearray()
        self._greeted = greeted

    def fileno(self) -> int:
        return self._socket.fileno()

    def notify(self) -> None:
        self._bell.needed = True

    def progress(self) -> None:
        try:
            if not self._greeted:
                self._read_greeting()
            elif not self._socket.recv(BELLS_AT_ONCE):
                raise LinkClosed(f"{self.address} closed the connection")
        except BlockingIOError:
            pass
        except (OSError, HandshakeError) as error:
            raise LinkClosed(f"{self.address}: {error}") from error

    def _read_greeting(self) -> None:
        chunk = self._socket.recv(HEADER_BYTES - len(self._greeting))
        if not chunk:
            raise LinkClosed(f"{self.address} closed the connection")
        self._greeting += chunk
        if len(self._greeting) == HEADER_BYTES:
            self._greeted = True
            if read_welcome(self._greeting).incarnation != self.incarnation:
                raise LinkClosed(f"{self.address} is another process now")

    def grown(self, shape: SegmentShape) -> "SharedLink":
        """The server took an offer before, so the new one is used at once: where it is not taken
        the connection ends, and rows are sent again."""
        area, offer = _area(self.device, shape.slots)
        sock = None
        try:
            sock = connect(self.address, 0.0)
            segment = _attach(sock, shape, self._bell, offer, must=area is not None)
        except OSError as error:
            if sock is not None:
                sock.close()
            raise LinkClosed(f"{self.address}: {error}") from error
        link = SharedLink(self.address, self._bell, sock, segment, self.incarnation, greeted=False)
        link.area, link.device = area, self.device
        return link

    @property
    def is_idle(self) -> bool:
        return not self.segment.busy()

    def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        if self.area is not None:
            RETIRED.add(self._socket, self.area)
            return
        with contextlib.suppress(OSError):
            self._socket.close()
