"""Starts and stops the gateway on Ray Serve."""

import contextlib
import logging
from typing import TYPE_CHECKING

from starlette.applications import Starlette

from orchestrator.gateway.app import build_app
from orchestrator.gateway.config import GatewayConfig
from orchestrator.gateway.mesh import Mesh

if TYPE_CHECKING:
    from ray.exceptions import RayError

APP_NAME = "expertmesh"

MAX_ONGOING_REQUESTS = 100_000
"""Serve must never hold a request back: the gateway itself answers 429."""


class GatewayDeployment:
    """The Serve replica: builds the application where it runs."""

    def __init__(self, config: GatewayConfig, mesh: Mesh, key_digests: frozenset[bytes]) -> None:
        self._arguments = (config, mesh, key_digests)

    def __serve_build_asgi_app__(self) -> Starlette:
        return build_app(*self._arguments)


def deploy_gateway(
    config: GatewayConfig, mesh: Mesh, key_digests: frozenset[bytes] = frozenset()
) -> str:
    """Start Serve and the gateway on the connected Ray cluster; returns the base URL.

    `key_digests` are those of the API keys (`auth.digest`); without any, no key is asked for.
    Success means that the gateway answers HTTP; engines need not be ready yet. After a failure
    nothing is left of it.

    Raises `RuntimeError` if it cannot listen where the config says, be it that the port is taken or
    that Serve runs on this cluster already and listens elsewhere.
    """
    from ray import serve
    from ray.exceptions import RayError
    from ray.serve.config import HTTPOptions, ProxyLocation
    from ray.serve.schema import LoggingConfig

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    quiet = LoggingConfig(log_level="WARNING", enable_access_log=False)
    deployment = serve.deployment(
        name="gateway",
        num_replicas=1,
        max_ongoing_requests=MAX_ONGOING_REQUESTS,
        graceful_shutdown_timeout_s=config.drain_timeout_s,
        ray_actor_options={"num_cpus": 0},
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
        app = deployment.bind(config, mesh, key_digests)
        serve.run(app, name=APP_NAME, route_prefix="/", logging_config=quiet)
    except RayError as error:
        remove_gateway()
        raise RuntimeError(f"the gateway cannot listen on {url}: {_cause(error)}") from error
    return url


def remove_gateway() -> None:
    """Let running requests finish, then stop the gateway; nothing if there is none.

    Serve stops too, unless others use it.
    """
    from ray import serve
    from ray.serve.exceptions import RayServeException

    with contextlib.suppress(RayServeException):
        # Deleted first: shutting Serve down stops the proxy, and with it the answers under way.
        serve.delete(APP_NAME, _blocking=True)
        if not serve.status().applications:
            serve.shutdown()  # type: ignore[no-untyped-call]


def _check_address(config: GatewayConfig) -> None:
    """A Serve that runs already keeps its address, whatever `serve.start` is told."""
    # Serve tells its address nowhere else.
    from ray.serve.context import _get_global_client

    client = _get_global_client()
    assert client is not None
    actual = client.http_config
    if (actual.host, actual.port) != (config.host, config.port):
        raise RuntimeError(
            f"Ray Serve runs on this cluster already and listens on {actual.host}:{actual.port}: "
            f"give the gateway that address instead of {config.host}:{config.port}"
        )


def _cause(error: "RayError") -> str:
    """The last line of the actor's traceback."""
    return str(error).strip().splitlines()[-1]
