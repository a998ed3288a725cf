"""The router: token-level expert dispatch for the engines of one node.

A plain class; `orchestrator.cluster` turns it into a Ray actor.
"""

import logging
import os
import threading
from dataclasses import dataclass
from typing import Any

from actors.dispatch.dispatcher import Dispatcher
from actors.dispatch.subscription import Subscription
from actors.listening import ready_to_listen, remove_sockets
from actors.logs import start_logging
from actors.process import limit_threads
from actors.router.server import RouterServer
from actors.wire.address import parse_address
from actors.wire.node import node_id
from actors.wire.security import HANDSHAKE_ONLY, TcpSecurity

log = logging.getLogger(__name__)

FIRST_VIEW_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class RouterConfig:
    """directory: where the mesh's views come from; listen: addresses to serve engines on.

    security: of its TCP connections.
    """

    id: str
    directory: str
    listen: tuple[str, ...]
    log_level: str = "INFO"
    security: TcpSecurity = HANDSHAKE_ONLY


class ExpertRouter:
    """Holds the plan and the links to the shards."""

    def __init__(self, config: RouterConfig, secret: bytes) -> None:
        start_logging(config.log_level)
        limit_threads(1)
        self._config = config
        self._secret = secret
        self._state = "starting"
        self._views = Subscription(parse_address(config.directory), secret, "router")
        self._server: RouterServer | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> dict[str, Any]:
        """Follow the mesh and open the sockets.

        Returns {"id", "incarnation", "pid", "node", "addresses"}; incarnation: what the data links'
        WELCOME says.

        Raises:
            ConnectionError: the directory does not answer.
        """
        self._views.start(FIRST_VIEW_TIMEOUT_S)
        self._server = RouterServer(
            Dispatcher(self._views, self._secret),
            ready_to_listen(self._config.listen),
            self._secret,
            self._config.security,
        )
        self._thread = threading.Thread(target=self._serve, name="routes", daemon=True)
        self._thread.start()
        self._state = "ready"
        return {
            "id": self._config.id,
            "incarnation": self._server.incarnation,
            "pid": os.getpid(),
            "node": node_id(),
            "addresses": [str(address) for address in self._server.addresses],
        }

    def _serve(self) -> None:
        assert self._server is not None
        try:
            self._server.run()
        except Exception:  # a router that cannot serve must not look healthy
            log.exception("the data links failed")
            os._exit(1)

    def status(self) -> dict[str, Any]:
        """State, pid, epoch followed and batches routed."""
        return {
            "pid": os.getpid(),
            "node": node_id(),
            "state": self._state,
            "epoch": self._views.current().epoch.number if self._state == "ready" else 0,
            "calls": self._server.calls if self._server else 0,
        }

    def stop(self) -> None:
        """Close the sockets. Idempotent."""
        self._state = "draining"
        self._views.stop()
        if self._server is not None and self._thread is not None:
            self._server.stop()
            self._thread.join(timeout=5.0)
        remove_sockets(self._config.listen)
