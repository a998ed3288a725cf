"""Follow the mesh: a background thread keeps the newest `MeshView` of the controller's directory.

The data plane does not depend on the controller being alive. When the connection is lost the last
view stays in force, and the thread tries again with growing pauses.
"""

import contextlib
import logging
import os
import threading
import time

from actors.dispatch.mesh_view import MeshView, view_from_json
from actors.dispatch.view_source import Follower
from actors.wire.address import Address, connect, parse_address
from actors.wire.frame import FrameError
from actors.wire.handshake import greet_server
from actors.wire.messages import receive_message, send_message
from actors.wire.node import node_id

log = logging.getLogger(__name__)

ADDRESS_VARIABLE = "EXPERTMESH_ADDRESS"
SECRET_VARIABLE = "EXPERTMESH_SECRET"
CONNECT_TIMEOUT_S = 5.0
FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 5.0


class Subscription:
    """`ViewSource` over a directory connection."""

    def __init__(self, address: Address, secret: bytes, role: str) -> None:
        """role: what this client is, for the directory's list ("engine", "router", "external")."""
        self._address, self._secret, self._role = address, secret, role
        self._changed = threading.Condition()
        self._view: MeshView | None = None
        self._followers: list[Follower] = []
        self._stopping = False
        self._failure = "not connected yet"
        self._thread = threading.Thread(target=self._follow, name="mesh-directory", daemon=True)

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
            if not self._changed.wait_for(lambda: self._view is not None, timeout_s):
                raise ConnectionError(
                    f"no ExpertMesh answers at {self._address} ({self._failure}); "
                    f"check {ADDRESS_VARIABLE} and that the mesh is running"
                )
            assert self._view is not None
            return self._view

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

    def stop(self) -> None:
        self._stopping = True

    def _follow(self) -> None:
        pause_s = FIRST_PAUSE_S
        while not self._stopping:
            try:
                self._listen()
            except (OSError, EOFError, FrameError, ValueError) as error:
                self._failure = str(error) or type(error).__name__
                log.debug("directory %s: %s; trying again", self._address, self._failure)
            else:
                pause_s = FIRST_PAUSE_S
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def _listen(self) -> None:
        with contextlib.closing(connect(self._address, CONNECT_TIMEOUT_S)) as sock:
            if not self._address.is_unix:
                greet_server(sock, self._secret)
            send_message(sock, {"role": self._role, "pid": os.getpid(), "node": node_id()})
            sock.settimeout(None)
            while not self._stopping:
                message = receive_message(sock)
                view = view_from_json(message["view"])
                with self._changed:
                    self._view = view
                    self._changed.notify_all()
                send_message(sock, {"version": [view.version.term, view.version.number]})
