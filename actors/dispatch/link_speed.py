"""How far away shards are: round trip and bandwidth of the way to each, measured on the side.

A thread opens a link of its own to a shard, sends PROBE frames, which the server sends back without
computing, and closes it: calls do not wait for it and do not share its connection. The fastest
small probe is the round trip; how much longer the fastest large one takes says what a second
carries, there and back together. Large ones grow until they take a while, so that a narrow way is
not filled with them. Within a node that is the server's copy within shared memory.
A busy server answers late, so these are of the way and not of the queue only as far as some probe
was lucky. Nothing is decided by these figures: they are told to the controller, for people.
"""

import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass

from actors.dispatch.connector import PeerKey, key_of
from actors.dispatch.view_source import ViewSource
from actors.wire.address import Address
from actors.wire.bell import Bell
from actors.wire.exchange import Room
from actors.wire.frame import FrameKind, Header, body_bytes
from actors.wire.handshake import HandshakeError
from actors.wire.link import ClientLink, LinkTimeout
from actors.wire.transports import open_link
from actors.wire.waiting import Waiting

log = logging.getLogger(__name__)

FIRST_S = 10.0
"""After the start of a dispatcher, when a mesh that comes up is busy with other things."""
AGAIN_S, AFTER_FAILURE_S = 300.0, 30.0
"""Between two measurements of the same way."""
SMALL = (1, 2)
"""Rows and values of each, of a small probe."""
LARGE_ROWS, LARGE_VALUES = (8, 32, 128, 512), 1024
"""Of large ones: 16 KiB to 1 MiB of bf16 each way."""
LONG_S = 5e-3
"""Beyond the round trip: no larger ones are sent."""
SMALL_PROBES, LARGE_PROBES = 30, 3
PROBE_TIMEOUT_S = 2.0
LEAST_S = 1e-6
"""By which a large probe takes longer at least."""


@dataclass(frozen=True, slots=True)
class LinkSpeed:
    """round_trip_s: of a small message. bytes_per_s: of a large one, there and back."""

    round_trip_s: float
    bytes_per_s: float


UNMEASURED = LinkSpeed(0.0, 0.0)


def measure_way(address: Address, secret: bytes) -> LinkSpeed:
    """Raises OSError or HandshakeError: there is no link, or it answers too late or not at all."""
    bell = Bell()
    try:
        link = open_link(address, secret, bell)
        try:
            return measure_link(link, bell)
        finally:
            link.close()
    finally:
        bell.close()


def measure_link(link: ClientLink, bell: Bell) -> LinkSpeed:
    """Of a link that nobody else uses. Raises LinkClosed."""
    waiting = Waiting()
    waiting.watch([link])
    small_s = min(_probe_s(link, bell, waiting, *SMALL) for _ in range(SMALL_PROBES))
    longer_s, carried = LEAST_S, 0
    for rows in LARGE_ROWS:
        large = (rows, LARGE_VALUES)
        large_s = min(_probe_s(link, bell, waiting, *large) for _ in range(LARGE_PROBES))
        longer_s, carried = large_s - small_s, 2 * (_bytes(*large) - _bytes(*SMALL))
        if longer_s > LONG_S:
            break
    return LinkSpeed(small_s, carried / max(longer_s, LEAST_S))


def _bytes(rows: int, hidden: int) -> int:
    return body_bytes(FrameKind.PROBE, rows, hidden)


def _probe_s(link: ClientLink, bell: Bell, waiting: Waiting, rows: int, hidden: int) -> float:
    """Seconds of one probe. What it carries is whatever lies in its slot."""
    header = Header(FrameKind.PROBE, 1, _bytes(rows, hidden), rows=rows, hidden=hidden)
    began_s = time.perf_counter()
    posted = Room(link, header).post()
    bell.ring()
    if not waiting.answered(posted.parts, time.monotonic() + PROBE_TIMEOUT_S):
        for _, error in waiting.lost:
            raise error
        raise LinkTimeout(f"{link.address}: no answer to a probe within {PROBE_TIMEOUT_S:g} s")
    taken_s = time.perf_counter() - began_s
    posted.read()
    posted.free()
    return taken_s


class LinkMeter:
    """Measures the ways to the shards of the newest view now and then, in a thread. speeds: by
    shard and incarnation; replaced as a whole."""

    def __init__(self, views: ViewSource, secret: bytes, first_s: float = FIRST_S) -> None:
        """first_s: until it measures for the first time, and between looks at the view."""
        self.speeds: Mapping[tuple[str, int], LinkSpeed] = {}
        self._views, self._secret, self._first_s = views, secret, first_s
        self._closed = threading.Event()
        threading.Thread(target=self._run, name="mesh-link-speed", daemon=True).start()

    def close(self) -> None:
        self._closed.set()

    def _run(self) -> None:
        due_s: dict[PeerKey, float] = {}
        while not self._closed.wait(self._first_s):
            keys = self._keys()
            due_s = {key: due_s.get(key, 0.0) for key in keys}
            kept = {(id, incarnation) for id, incarnation, _ in keys}
            self.speeds = {key: speed for key, speed in self.speeds.items() if key in kept}
            for key in keys:
                if due_s[key] <= time.monotonic() and not self._closed.is_set():
                    measured = self._measure(key)
                    due_s[key] = time.monotonic() + (AGAIN_S if measured else AFTER_FAILURE_S)

    def _keys(self) -> list[PeerKey]:
        keys = []
        for peer in self._views.current().shards:
            try:
                keys.append(key_of(peer))
            except LookupError:
                continue  # the connector says so
        return keys

    def _measure(self, key: PeerKey) -> bool:
        id, incarnation, addresses = key
        for address in addresses:
            try:
                found = measure_way(address, self._secret)
            except (OSError, HandshakeError) as error:
                log.debug("the way to %s at %s was not measured: %s", id, address, error)
                continue
            self.speeds = {**self.speeds, (id, incarnation): found}
            return True
        return False
