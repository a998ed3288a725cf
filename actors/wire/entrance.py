"""A listening socket of a server, and the clients that came to it and are not yet served.

Each has ARRIVAL_TIMEOUT_S to say who it is, measured on the server's own clock, which stands still
while the server computes. Arrivals are counted for each socket by itself, so that clients who say
nothing to the TCP port keep nobody from the Unix socket; where too many are on their way in, the
one that came first goes: one that has something to say takes a round trip to say it.
"""

import contextlib
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from actors.wire.address import Address, listen
from actors.wire.arrival import Arrival, TcpArrival, TcpHost, UnixArrival

if TYPE_CHECKING:
    from actors.wire.device_memory import DeviceMemory

ARRIVAL_TIMEOUT_S = 2.0
MOST_ARRIVALS = 64
"""Clients that may be on their way in at once through one socket."""
ACCEPTS_AT_ONCE = 16
"""Clients that are let in before those that came earlier are heard."""


class Entrance:
    """One address that a server listens on.

    clock: seconds of the server's clock. incarnation: see `actors.wire.handshake`.
    """

    def __init__(
        self,
        address: Address,
        clock: Callable[[], float],
        incarnation: int,
        host: TcpHost,
        device: "DeviceMemory | None" = None,
    ) -> None:
        """device: of the server. Raises OSError where the address is taken."""
        self.sock, self.address = listen(address)
        self.sock.setblocking(False)
        self._inode = os.stat(address.host).st_ino if address.is_unix else 0
        self._clock = clock
        self._incarnation, self._host, self._device = incarnation, host, device
        self.arrivals: list[Arrival] = []
        """Oldest first."""

    def accept(self) -> Arrival | None:
        """The next client that came; None: nobody else did.

        Raises:
            OSError: it has left already, or the system has no descriptor for it.
        """
        try:
            sock, peer = self.sock.accept()
        except BlockingIOError:
            return None
        name = f"{self.address} <- {peer or 'this node'}"
        deadline_s = self._clock() + ARRIVAL_TIMEOUT_S
        try:
            arrival: Arrival = (
                UnixArrival(sock, name, deadline_s, self._incarnation, self._device)
                if self.address.is_unix
                else TcpArrival(sock, name, deadline_s, self._incarnation, self._host)
            )
        except OSError:
            sock.close()
            raise
        self.arrivals.append(arrival)
        return arrival

    def surplus(self) -> Arrival | None:
        """Who has to go because too many are on their way in."""
        return self.arrivals[0] if len(self.arrivals) > MOST_ARRIVALS else None

    def late(self) -> list[Arrival]:
        """Those whose time is over."""
        now_s = self._clock()
        return [arrival for arrival in self.arrivals if arrival.deadline_s <= now_s]

    def next_deadline_s(self) -> float | None:
        """When somebody's time is over next, in seconds from now; None: nobody is on the way in."""
        if not self.arrivals:
            return None
        return max(0.0, self.arrivals[0].deadline_s - self._clock())

    def close(self) -> None:
        for arrival in self.arrivals:
            arrival.close()
        self.sock.close()
        if self.address.is_unix:
            with contextlib.suppress(OSError):
                # A server that took this one's place may have its own socket there by now.
                if os.stat(self.address.host).st_ino == self._inode:
                    os.unlink(self.address.host)
