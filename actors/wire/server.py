"""Server side of the data links: one event loop that never blocks on a peer.

Frames that are complete after one look around are handed over together, so the handler can merge
those of one layer into one kernel call. A client that sends anything but a frame is closed with a
logged reason; the others do not notice. The time that the handler takes counts for no client's
deadline: what arrived meanwhile is read before anybody is late (see `entrance.py`). Between calls
the loop looks around for a short while (see `spin_time.py`), then tells the clients that share
memory with it that they have to ring, and blocks.
"""

import logging
import os
import select
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from actors.wire.address import Address
from actors.wire.arrival import Arrival, TcpHost
from actors.wire.connections import Connection, Request, SharedConnection
from actors.wire.entrance import ACCEPTS_AT_ONCE, ARRIVAL_TIMEOUT_S, MOST_ARRIVALS, Entrance
from actors.wire.frame import MAX_ERROR_BYTES, Fault, FrameError, FrameKind, Header
from actors.wire.handshake import draw_incarnation
from actors.wire.records import RecordError
from actors.wire.security import HANDSHAKE_ONLY, TcpSecurity
from actors.wire.shared_clients import SharedClients
from actors.wire.spin_time import SpinTime

if TYPE_CHECKING:
    from actors.wire.device_memory import DeviceMemory

__all__ = ["FrameServer", "Request"]

log = logging.getLogger(__name__)

Handler = Callable[[Sequence[Request]], None]


class FrameServer:
    """Listens on `addresses` and calls `handler` with each batch of complete frames."""

    def __init__(
        self,
        addresses: Sequence[Address],
        secret: bytes,
        handler: Handler,
        security: TcpSecurity = HANDSHAKE_ONLY,
        device: "DeviceMemory | None" = None,
    ) -> None:
        """device: whose memory clients on this node may share with this server.

        Bind at once, so that `addresses` holds real ports; serve with `run`.

        Raises:
            OSError: an address is taken. ValueError: the certificate for TLS cannot be used.
        """
        self.incarnation = draw_incarnation()
        """What clients are told in WELCOME; every server that is started has another one."""
        self._handler = handler
        self._epoll = select.epoll()
        self._watched: dict[int, Callable[[int, list[Request]], None]] = {}
        """What to do about each file descriptor's events."""
        self._connections: list[Connection] = []
        self._unfinished: set[Connection] = set()
        """Those that have more to read than their sockets show."""
        self._ends = select.epoll()
        """Watches connections for nothing but their end."""
        self._handling_s = 0.0
        self._shared = SharedClients()
        self._spin_time = SpinTime()
        host = TcpHost(secret, security)
        self._entrances = [
            Entrance(address, self._clock, self.incarnation, host, device) for address in addresses
        ]
        self.addresses = [entrance.address for entrance in self._entrances]
        for entrance in self._entrances:
            self._watch(entrance.sock.fileno(), partial(self._accept, entrance))
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        self._watch(self._wake_read, _wake_up)
        self._stopping = False
        self._closing = threading.Lock()
        self._closed = False

    def _clock(self) -> float:
        """Seconds that the loop spent on anything but its handler."""
        return time.monotonic() - self._handling_s

    # -- the loop

    def run(self) -> None:
        """Serve until `stop`; call from one thread only."""
        try:
            while not self._stopping:
                self._turn()
        finally:
            self._close_all()

    def stop(self) -> None:
        """End `run` from another thread. Idempotent."""
        self._stopping = True
        with self._closing:  # a descriptor that was closed may be somebody else's by now
            if not self._closed:
                os.write(self._wake_write, b"x")

    def _turn(self) -> None:
        ready = self._look_at_segments()
        for connection in list(self._unfinished):
            self._read(connection, ready)
        if ready:
            self._look_at_sockets(ready, 0.0)
        else:
            ready = self._await_work()
        if any(request.header.kind is FrameKind.PROBE for request in ready):
            ready = self._answer_probes(ready)
        if ready:
            start_s = time.monotonic()
            self._handler(ready)
            self._handling_s += time.monotonic() - start_s
        self._turn_away_the_late()

    def _answer_probes(self, ready: Sequence[Request]) -> list[Request]:
        """Send what only measures the way back as it came; returns the others."""
        others = []
        for request in ready:
            if request.header.kind is not FrameKind.PROBE:
                others.append(request)
            elif (room := self.room(request, request.header.body_bytes)) is not None:
                room[:] = request.body
                self.answer(request, request.header._replace(kind=FrameKind.PROBED))
        return others

    def _look_at_segments(self) -> list[Request]:
        ready: list[Request] = []
        while (found := self._shared.take()) is not None:
            connection, slot = found
            try:
                ready.append(connection.request(slot))
            except FrameError as error:
                self._drop(connection, str(error), logging.WARNING)
        return ready

    def _await_work(self) -> list[Request]:
        """Spin for a while if that pays, then block until there is something to do."""
        start_s = time.perf_counter()
        spun_s = 0.0
        while self._connections and spun_s < self._spin_time.spin_s:
            os.sched_yield()
            ready = self._look_at_segments()
            if len(self._connections) > len(self._shared):
                self._look_at_sockets(ready, 0.0)
            spun_s = time.perf_counter() - start_s
            if ready:
                self._spin_time.learn(spun_s, spun_s)
                if len(self._connections) == len(self._shared):
                    # Clients that call again at once must not keep others from coming in.
                    self._look_at_sockets(ready, 0.0)
                return ready
        ready = self._sleep()
        self._spin_time.learn(time.perf_counter() - start_s, spun_s)
        return ready

    def _sleep(self) -> list[Request]:
        self._shared.say_asleep(True)
        ready = self._look_at_segments()
        deadlines_s = [entrance.next_deadline_s() for entrance in self._entrances]
        timeout_s = min((s for s in deadlines_s if s is not None), default=None)
        if ready:
            timeout_s = 0.0
        if self._unfinished:
            timeout_s = 0.0
        self._look_at_sockets(ready, timeout_s)
        self._shared.say_asleep(False)
        return ready + self._look_at_segments()

    def _look_at_sockets(self, ready: list[Request], timeout_s: float | None) -> None:
        for fd, events in self._epoll.poll(timeout_s):
            react = self._watched.get(fd)
            if react is not None:  # else dropped a moment ago
                react(events, ready)

    def _watch(
        self, fd: int, react: Callable[[int, list[Request]], None], events: int = select.EPOLLIN
    ) -> None:
        self._epoll.register(fd, events)
        self._watched[fd] = react

    def _unwatch(self, fd: int) -> None:
        if self._watched.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    # -- clients

    def _serve(self, connection: Connection, events: int, ready: list[Request]) -> None:
        if events & select.EPOLLOUT:
            self._flush(connection)
        if events & ~select.EPOLLOUT:  # an end or an error is noticed by reading, too
            self._read(connection, ready)

    def _read(self, connection: Connection, ready: list[Request]) -> None:
        try:
            ready += connection.read()
            if connection.has_more:
                self._unfinished.add(connection)
            else:
                self._unfinished.discard(connection)
        except EOFError:
            self._drop(connection, "closed by the client", logging.DEBUG)
        except (FrameError, RecordError) as error:
            self._drop(connection, str(error), logging.WARNING)
        except (OSError, MemoryError) as error:
            self._drop(connection, str(error) or "no memory for its frame", logging.INFO)

    def _accept(self, entrance: Entrance, events: int, ready: list[Request]) -> None:
        for _ in range(ACCEPTS_AT_ONCE):
            try:
                arrival = entrance.accept()
            except OSError as error:
                log.warning("accept on %s failed: %s", entrance.address, error)
                return
            if arrival is None:
                return
            self._watch(arrival.sock.fileno(), partial(self._admit, entrance, arrival))
            surplus = entrance.surplus()
            if surplus is not None:
                self._hear_or_refuse(
                    entrance, surplus, f"said nothing, and {MOST_ARRIVALS} others came since"
                )

    def _admit(
        self, entrance: Entrance, arrival: Arrival, events: int, ready: list[Request]
    ) -> None:
        try:
            connection = arrival.read()
        except (FrameError, OSError, EOFError) as error:
            self._refuse_arrival(entrance, arrival, str(error) or "left during the handshake")
            return
        if connection is not None:
            entrance.arrivals.remove(arrival)
            self._connections.append(connection)
            fd = connection.sock.fileno()
            self._watched[fd] = partial(self._serve, connection)
            self._ends.register(fd, select.EPOLLRDHUP)
            if isinstance(connection, SharedConnection):
                self._admit_shared(connection)

    def _admit_shared(self, connection: SharedConnection) -> None:
        self._shared.add(connection)
        try:
            self._watch(connection.bell, _wake_up, select.EPOLLIN | select.EPOLLET)
        except OSError as error:  # not every descriptor can be watched
            self._drop(connection, f"its bell: {error}", logging.WARNING)

    def _turn_away_the_late(self) -> None:
        for entrance in self._entrances:
            for arrival in entrance.late():
                self._hear_or_refuse(entrance, arrival, f"said nothing for {ARRIVAL_TIMEOUT_S:g} s")

    def _hear_or_refuse(self, entrance: Entrance, arrival: Arrival, reason: str) -> None:
        """Refuse a client unless it has said everything by now."""
        self._admit(entrance, arrival, 0, [])
        if arrival in entrance.arrivals:
            self._refuse_arrival(entrance, arrival, reason)

    def _refuse_arrival(self, entrance: Entrance, arrival: Arrival, reason: str) -> None:
        log.warning("refused %s: %s", arrival.peer, reason)
        entrance.arrivals.remove(arrival)
        self._unwatch(arrival.sock.fileno())
        arrival.close()

    def _drop(self, connection: Connection, reason: str, level: int) -> None:
        log.log(level, "closing %s: %s", connection.peer, reason)
        if connection not in self._connections:
            return  # dropped already
        self._connections.remove(connection)
        self._unfinished.discard(connection)
        if isinstance(connection, SharedConnection):
            self._shared.remove(connection)
            self._unwatch(connection.bell)
        self._unwatch(connection.sock.fileno())
        self._ends.unregister(connection.sock.fileno())
        connection.close()

    def _close_all(self) -> None:
        for connection in self._connections:
            connection.close()
        for entrance in self._entrances:
            entrance.close()
        self._epoll.close()
        self._ends.close()
        with self._closing:
            self._closed = True
            os.close(self._wake_read)
            os.close(self._wake_write)

    # -- answers

    def present(self, requests: Sequence[Request]) -> list[Request]:
        """Those whose clients are still there, as far as the system knows by now."""
        for fd, _ in self._ends.poll(0.0):
            for connection in [c for c in self._connections if c.sock.fileno() == fd]:
                self._drop(connection, "left before its call was computed", logging.INFO)
        return [request for request in requests if request.connection.sock.fileno() >= 0]

    def room(self, request: Request, length: int) -> memoryview | None:
        """Where the answer's body is written, for `answer` to send; None: the client is gone, or
        left no room and is dropped."""
        connection = request.connection
        if connection.sock.fileno() < 0:
            return None
        try:
            return connection.room(request, length)
        except FrameError as error:
            self._drop(connection, str(error), logging.WARNING)
            return None

    def answer(self, request: Request, header: Header) -> None:
        """Send `header` and the body that `room` was filled with; a client that left is dropped."""
        connection = request.connection
        if connection.sock.fileno() < 0:
            return  # dropped since
        try:
            connection.answer(request, header)
        except OSError as error:
            self._drop(connection, str(error), logging.INFO)
            return
        if connection.wants_write:
            self._epoll.modify(connection.sock.fileno(), select.EPOLLIN | select.EPOLLOUT)

    def refuse(self, request: Request, reason: str, fault: Fault = Fault.REFUSED) -> None:
        """Answer with an ERROR frame; the connection stays."""
        text = reason.encode()[:MAX_ERROR_BYTES]
        room = self.room(request, len(text))
        if room is not None:
            room[:] = text
            header = Header(FrameKind.ERROR, request.header.call_id, len(text), rows=fault)
            self.answer(request, header)

    def _flush(self, connection: Connection) -> None:
        try:
            connection.flush()
        except OSError as error:
            self._drop(connection, str(error), logging.INFO)
            return
        if not connection.wants_write:
            self._epoll.modify(connection.sock.fileno(), select.EPOLLIN)


def _wake_up(*_: object) -> None:
    """What ends the loop's sleep without more to do: it looks around by itself."""
