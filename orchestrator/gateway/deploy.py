"""Starts and stops the gateway on Ray Serve."""

import logging
from typing import Any

from starlette.applications import Starlette

from orchestrator.gateway.app import build_app
from orchestrator.gateway.config import GatewayConfig
from orchestrator.gateway.mesh import Mesh

logger = logging.getLogger(__name__)

APP_NAME = "expertmesh"
MAX_ONGOING_REQUESTS = 100_000
"""Serve must never hold a request back: the gateway itself answers 429."""


class GatewayDeployment:
    """The Serve replica: builds the application where it runs."""

    def __init__(self, config: GatewayConfig, mesh: Mesh, key_digests: frozenset[bytes]) -> None:
        self._arguments = (config, mesh, key_digests)

    def __serve_build_asgi_app__(self) -> Starlette:  # noqa: N807, PLW3201
        return build_app(*self._arguments)


def deploy_gateway(
    config: GatewayConfig, mesh: Mesh, key_digests: frozenset[bytes] = frozenset()
) -> str:
    """Start Serve and the gateway on the connected Ray cluster; returns the base URL.

    Returns once the gateway answers HTTP, which is before an engine has to be ready.
    """
    from ray import serve
    from ray.serve.config import HTTPOptions, ProxyLocation
    from ray.serve.schema import LoggingConfig

    quiet = LoggingConfig(log_level="WARNING", enable_access_log=False)
    serve.start(
        proxy_location=ProxyLocation.HeadOnly,
        http_options=HTTPOptions(host=config.host, port=config.port),
        logging_config=quiet,
    )
    options: dict[str, Any] = {
        "name": "gateway",
        "num_replicas": 1,
        "max_ongoing_requests": MAX_ONGOING_REQUESTS,
        "ray_actor_options": {"num_cpus": 0},
        "logging_config": quiet,
    }
    deployment = serve.deployment(serve.ingress()(GatewayDeployment), **options)
    app = deployment.bind(config, mesh, key_digests)
    serve.run(app, name=APP_NAME, route_prefix="/", logging_config=quiet)
    return f"http://{config.host}:{config.port}"


def remove_gateway() -> None:
    """Stop the gateway and Serve; does nothing if there is none."""
    from ray import serve

    serve.shutdown()
