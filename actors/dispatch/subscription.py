"""Follow the mesh: a background thread keeps the newest `MeshView` of the controller's directory.

The data plane does not depend on the controller being alive. When the connection is lost, or what
came over it was no view, the last view stays in force and the thread connects again, with pauses
that grow until a view has come. Views are decoded in this thread together with all that dispatchers
look up in them. A view older than the one in force is refused; the connection stays, because the
next one may be newer. Each view is acknowledged when all dispatchers of this process follow it
(`actors.dispatch.view_source`).
"""

import contextlib
import logging
import os
import select
import sys
import threading
import time
from collections.abc import Iterator

from actors.dispatch.mesh_view import MeshView
from actors.dispatch.report import DispatchReport, joined
from actors.dispatch.traffic_counts import TrafficCounts
from actors.dispatch.view_coding import decode_view
from actors.dispatch.view_messages import AdoptedHead, HelloHead, ReportHead, TrafficHead
from actors.dispatch.view_source import Follower
from actors.wire.address import Address, connect, parse_address
from actors.wire.handshake import greet_server
from actors.wire.messages import pack, receive_message
from actors.wire.node import node_id
from actors.wire.streams import ByteStream, PlainStream, send_all

log = logging.getLogger(__name__)

ADDRESS_VARIABLE = "EXPERTMESH_ADDRESS"
SECRET_VARIABLE = "EXPERTMESH_SECRET"
CONNECT_TIMEOUT_S = 5.0
FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 5.0
REPORT_S = 2.0
"""Time between two reports of what the dispatchers did, if they did anything."""
ADOPTION_CHECK_MS = 5
"""How often dispatchers with calls under way are looked at while a view is to be acknowledged."""
USUAL_SWITCH_S = sys.getswitchinterval()
BRIEF_SWITCH_S = 20e-6
"""How long a thread that waits for Python's lock lets this one keep it while a view is decoded."""


@contextlib.contextmanager
def _yielding() -> Iterator[None]:
    """Give Python's lock soon to whoever asks for it, as a dispatcher between two waits does."""
    sys.setswitchinterval(BRIEF_SWITCH_S)
    try:
        yield
    finally:
        sys.setswitchinterval(USUAL_SWITCH_S)


class Subscription:
    """`ViewSource` over a directory connection.

    refused: views that were older than the one in force. failures: connections that were lost or
    never came about. traffic: what this process counts by kind of traffic, if it does.
    """

    def __init__(self, address: Address, secret: bytes, role: str) -> None:
        """role: what this client is, for the directory's list ("engine", "router", "external")."""
        self._address, self._secret, self._role = address, secret, role
        self._changed = threading.Condition()
        self._view: MeshView | None = None
        self._followers: list[Follower] = []
        self._stopping = threading.Event()
        self._stream: ByteStream | None = None
        self._heard = False
        self._failure = "not connected yet"
        self._thread = threading.Thread(target=self._follow, name="mesh-directory", daemon=True)
        self.refused = 0
        self.failures = 0
        self.traffic: TrafficCounts | None = None

    @classmethod
    def from_environment(cls, role: str) -> "Subscription":
        """Follow the mesh named by EXPERTMESH_ADDRESS (and EXPERTMESH_SECRET over TCP)."""
        return cls(
            parse_address(os.environ[ADDRESS_VARIABLE]),
            os.environ.get(SECRET_VARIABLE, "").encode(),
            role,
        )

    def start(self, timeout_s: float) -> MeshView:
        """Connect and return the first view.

        Raises:
            ConnectionError: no view within `timeout_s`; says where it looked and why it failed.
        """
        self._thread.start()
        with self._changed:
            self._changed.wait_for(lambda: self._view or self._stopping.is_set(), timeout_s)
        if self._view is None:
            self.stop()
            raise ConnectionError(
                f"no ExpertMesh answers at {self._address} ({self._failure}); "
                f"check {ADDRESS_VARIABLE} and that the mesh is running"
            )
        return self._view

    def stop(self) -> None:
        """Close the connection; the last view stays. Idempotent."""
        with self._changed:
            self._stopping.set()
            self._changed.notify_all()
        stream = self._stream
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.shutdown()

    # -- ViewSource

    def current(self) -> MeshView:
        view = self._view
        assert view is not None, "start() comes first"
        return view

    def wait_change(self, seen: MeshView, timeout_s: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: self._view is not seen, timeout_s)

    def join(self) -> Follower:
        follower = Follower()
        with self._changed:
            self._followers.append(follower)
        return follower

    def leave(self, follower: Follower) -> None:
        with self._changed:
            self._followers.remove(follower)

    # -- the thread

    def _follow(self) -> None:
        pause_s = FIRST_PAUSE_S
        while not self._stopping.is_set():
            self._heard = False
            try:
                self._listen()
            # Whatever is wrong with this connection or with a view, the next may be right.
            except Exception as error:
                self._note(error)
            if self._heard:
                pause_s = FIRST_PAUSE_S
            self._stopping.wait(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def _note(self, error: Exception) -> None:
        if self._stopping.is_set():
            return
        self.failures += 1
        self._failure = str(error) or type(error).__name__
        # Connecting again and again says nothing new.
        level = logging.DEBUG if isinstance(error, OSError) and not self._heard else logging.WARNING
        log.log(level, "directory %s: %s; connecting again", self._address, self._failure)

    def _listen(self) -> None:
        with contextlib.closing(self._connect()) as stream:
            self._stream = stream
            try:
                hello = HelloHead(role=self._role, pid=os.getpid(), node=node_id())
                send_all(stream, pack(hello))
                stream.settimeout(None)
                self._take_views(stream)
            finally:
                self._stream = None

    def _connect(self) -> ByteStream:
        sock = connect(self._address, CONNECT_TIMEOUT_S)
        try:
            return PlainStream(sock) if self._address.is_unix else greet_server(sock, self._secret)
        except BaseException:
            sock.close()
            raise

    def _take_views(self, stream: ByteStream) -> None:
        readable = select.poll()
        readable.register(stream.fileno(), select.POLLIN)
        sent: MeshView | None = None
        acknowledged = True
        reported, report_at_s = DispatchReport(), time.monotonic() + REPORT_S
        while not self._stopping.is_set():
            if (now_s := time.monotonic()) >= report_at_s:
                report_at_s = now_s + REPORT_S
                reported = self._report(stream, reported)
                self._report_traffic(stream)
            wait_ms = 1000 * (report_at_s - now_s) if acknowledged else ADOPTION_CHECK_MS
            if stream.pending or readable.poll(max(1.0, wait_ms)):
                with _yielding():
                    sent = decode_view(*receive_message(stream), sent)
                self._heard = True
                if self._take(sent):
                    acknowledged = False
            if not acknowledged and self._is_adopted():
                version = self.current().version
                send_all(stream, pack(AdoptedHead(version=(version.term, version.number))))
                acknowledged = True

    def _report(self, stream: ByteStream, before: DispatchReport) -> DispatchReport:
        """Send what the dispatchers of this process did, where it differs from `before`."""
        with self._changed:
            told = [follower.report() for follower in self._followers if follower.report]
        report = joined(told)
        if told and report != before:
            send_all(stream, pack(ReportHead.of(report)))
        return report

    def _report_traffic(self, stream: ByteStream) -> None:
        window = self.traffic.take() if self.traffic is not None else None
        if window is not None:
            send_all(stream, pack(*TrafficHead.of(window)))

    def _take(self, view: MeshView) -> bool:
        """Put a view in force; False if it is older than the one that is."""
        with self._changed:
            if self._view is not None and view.version < self._view.version:
                self.refused += 1
                log.warning(
                    "directory %s: view %s is older than %s, which stays in force",
                    self._address, view.version, self._view.version,
                )  # fmt: skip
                return False
            # After a reconnection the same view comes again, and changes nothing.
            if self._view is None or view.version > self._view.version:
                self._view = view
                self._changed.notify_all()
            return True

    def _is_adopted(self) -> bool:
        """Whether all dispatchers of this process follow the view in force."""
        version = self.current().version
        with self._changed:
            return all(follower.has_adopted(version) for follower in self._followers)
