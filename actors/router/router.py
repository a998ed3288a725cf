"""The router: token-level expert dispatch for the engines of one node.

A plain class; `orchestrator.cluster` turns it into a Ray actor.
"""

import logging
import os
import threading
from dataclasses import dataclass

from actors.descriptions import RouterDescription
from actors.dispatch.choose import dispatcher_for
from actors.dispatch.subscription import Subscription
from actors.listening import ready_to_listen, remove_sockets
from actors.logs import start_logging
from actors.origin import Origin, code_digest
from actors.process import limit_threads
from actors.router.server import RouterServer
from actors.tracing.settings import SpanSettings
from actors.watched import Watched
from actors.wire.address import parse_address
from actors.wire.node import node_id
from actors.wire.security import HANDSHAKE_ONLY, TcpSecurity

log = logging.getLogger(__name__)

FIRST_VIEW_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class RouterConfig:
    """directory: where the mesh's views come from; listen: addresses to serve engines on.

    security: of its TCP connections. spans: where those of sampled steps go. setup: see
    `actors.origin`.
    """

    id: str
    directory: str
    listen: tuple[str, ...]
    log_level: str = "INFO"
    security: TcpSecurity = HANDSHAKE_ONLY
    spans: SpanSettings | None = None
    setup: str = ""


class ExpertRouter:
    """Holds the plan and the links to the shards."""

    def __init__(self, config: RouterConfig, secret: bytes) -> None:
        start_logging(config.log_level)
        limit_threads(1)
        self._config = config
        self._origin = Origin(code_digest(), config.setup)
        self._secret = secret
        self._views: Subscription | None = None
        self._starting = threading.Lock()
        self._watched = Watched()
        self._server: RouterServer | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> RouterDescription:
        """Follow the mesh and open the sockets. Idempotent.

        Raises:
            ConnectionError: the directory does not answer.
        """
        with self._starting:
            if self._server is None:
                self._start()
        return self.describe()

    def _start(self) -> None:
        if self._views is None:
            directory = parse_address(self._config.directory)
            self._views = Subscription(directory, self._secret, "router")
            self._views.start(FIRST_VIEW_TIMEOUT_S)
        self._server = RouterServer(
            dispatcher_for(self._views, self._secret, self._config.spans),
            ready_to_listen(self._config.listen),
            self._secret,
            self._config.security,
        )
        self._thread = threading.Thread(target=self._serve, name="routes", daemon=True)
        self._thread.start()

    def hold(self, watcher: tuple[int, int]) -> None:
        """See `actors.watched`."""
        self._watched.hold(watcher)

    def _serve(self) -> None:
        assert self._server is not None
        try:
            self._server.run()
        except Exception:  # a router that cannot serve must not look healthy
            log.exception("the data links failed")
            os._exit(1)

    def describe(self) -> RouterDescription:
        """Who this is, where it listens, what it follows. Changes nothing."""
        server, views = self._server, self._views
        assert server is not None
        assert views is not None
        return RouterDescription(
            incarnation=server.incarnation,
            pid=os.getpid(),
            node=node_id(),
            addresses=tuple(map(str, server.addresses)),
            epoch=views.current().epoch.number,
            calls=server.calls,
            origin=self._origin,
        )

    def stop(self) -> None:
        """Close the sockets. Idempotent."""
        self._watched.release()
        if self._views is not None:
            self._views.stop()
        if self._server is not None and self._thread is not None:
            self._server.stop()
            self._thread.join(timeout=5.0)
        remove_sockets(self._config.listen)
