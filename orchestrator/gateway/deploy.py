"""Starts and stops the gateway on Ray Serve."""

import contextlib
import logging
from typing import TYPE_CHECKING

from starlette.applications import Starlette

from orchestrator.clients.mesh import MeshClient
from orchestrator.cluster import ON_THE_HEAD
from orchestrator.config.schema import LogFormat
from orchestrator.errors import UserError
from orchestrator.gateway.app import GATEWAY_ID, build_app
from orchestrator.gateway.config import GatewayConfig
from orchestrator.gateway.logs import LogSource
from orchestrator.gateway.ray_logs import RayLogs
from orchestrator.logging_setup import set_up_logging

if TYPE_CHECKING:
    from ray.exceptions import RayError
    from ray.serve._private.client import ServeControllerClient

MAX_ONGOING_REQUESTS = 100_000
"""Serve must never hold a request back: the gateway itself answers 429."""


def app_name(mesh: str) -> str:
    """Name of a mesh's Serve application."""
    return f"expertmesh-{mesh}"


class GatewayDeployment:
    """The Serve replica: builds the application where it runs."""

    def __init__(
        self,
        config: GatewayConfig,
        mesh: MeshClient,
        key_digests: frozenset[bytes],
        admin_digests: frozenset[bytes],
        logs: LogSource,
    ) -> None:
        self._arguments = (config, mesh, key_digests, admin_digests, logs)
        self._logging = config.logging

    def __serve_build_asgi_app__(self) -> Starlette:
        set_up_logging(self._logging, GATEWAY_ID)
        return build_app(*self._arguments)


def deploy_gateway(
    config: GatewayConfig,
    mesh: MeshClient,
    key_digests: frozenset[bytes] = frozenset(),
    admin_digests: frozenset[bytes] = frozenset(),
) -> str:
    """Start Serve and the gateway on the connected Ray cluster; returns the base URL.

    `key_digests` are those of the API keys (`auth.digest`); without any, no key is asked for.
    `admin_digests` are those of the keys that may change the mesh.
    Success means that the gateway answers HTTP; engines need not be ready yet. After a failure
    nothing is left of it.

    Raises `UserError` if it cannot listen where the config says: the port is taken, Serve runs on
    this cluster already and listens elsewhere, or another application has the route prefix.
    """
    from ray import get_runtime_context, serve
    from ray.exceptions import RayError
    from ray.serve.config import HTTPOptions, ProxyLocation
    from ray.serve.schema import EncodingType
    from ray.serve.schema import LoggingConfig as ServeLogging

    _hush()
    encoding = EncodingType.JSON if config.logging.format is LogFormat.JSON else EncodingType.TEXT
    quiet = ServeLogging(log_level="WARNING", enable_access_log=False, encoding=encoding)
    deployment = serve.deployment(
        name="gateway",
        num_replicas=config.replicas,
        max_ongoing_requests=MAX_ONGOING_REQUESTS,
        graceful_shutdown_timeout_s=config.drain_timeout_s,
        # Beside its proxy: a node of its own would be one more that can be lost.
        ray_actor_options={"num_cpus": 0, "resources": ON_THE_HEAD},
        logging_config=quiet,
    )(serve.ingress()(GatewayDeployment))
    url = f"http://{config.host}:{config.port}"
    try:
        serve.start(
            proxy_location=ProxyLocation.HeadOnly,
            http_options=HTTPOptions(host=config.host, port=config.port),
            logging_config=quiet,
        )
        _check_address(config)
        _check_prefix(config)
        logs = RayLogs(get_runtime_context().get_job_id())
        app = deployment.bind(config, mesh, key_digests, admin_digests, logs)
        serve.run(
            app,
            name=app_name(config.mesh),
            route_prefix=config.route_prefix,
            logging_config=quiet,
        )
    except RayError as error:
        remove_gateway(config.mesh)
        raise UserError(
            f"the gateway cannot listen on {url}: {_cause(error)}",
            "choose another gateway.port (--port)",
        ) from error
    return url + config.route_prefix.rstrip("/")


def remove_gateway(mesh: str) -> None:
    """Let running requests finish, then stop the gateway of `mesh`; nothing if there is none.

    Serve stops too, unless others use it.
    """
    from ray import serve
    from ray.serve.exceptions import RayServeException

    _hush()
    with contextlib.suppress(RayServeException):
        # Deleted first: shutting Serve down stops the proxy, and with it the answers under way.
        serve.delete(app_name(mesh), _blocking=True)
        if not serve.status().applications:
            serve.shutdown()  # type: ignore[no-untyped-call]


def _hush() -> None:
    """Serve tells in the caller's terminal what it does."""
    logging.getLogger("ray.serve").setLevel(logging.WARNING)


def _check_address(config: GatewayConfig) -> None:
    """A Serve that runs already keeps its address, whatever `serve.start` is told."""
    actual = _serve_client().http_config
    if (actual.host, actual.port) != (config.host, config.port):
        raise UserError(
            f"Ray Serve runs on this cluster already and listens on {actual.host}:{actual.port}, "
            f"not on {config.host}:{config.port}",
            "give gateway.host and gateway.port that address, and gateway.route_prefix a path",
        )


def _check_prefix(config: GatewayConfig) -> None:
    """An application that has the prefix already, of another mesh or not of ours, keeps it."""
    own = app_name(config.mesh)
    for name, app in _serve_client().get_serve_details()["applications"].items():
        if name != own and app["route_prefix"] == config.route_prefix:
            raise UserError(
                f"gateway.route_prefix {config.route_prefix} belongs to the Serve application "
                f"{name} on this cluster",
                f"choose another, such as /{config.mesh}",
            )


def _serve_client() -> "ServeControllerClient":
    # Serve tells its address and the prefixes of its applications nowhere else.
    from ray.serve.context import _get_global_client

    client = _get_global_client()
    assert client is not None
    return client


def _cause(error: "RayError") -> str:
    """The last line of the actor's traceback."""
    return str(error).strip().splitlines()[-1]
