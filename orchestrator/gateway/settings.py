"""What the gateway is told of a mesh's configuration."""

from orchestrator.batch.deploy import batch_settings
from orchestrator.config.schema import MeshConfig
from orchestrator.gateway.config import GatewayConfig


def gateway_config(config: MeshConfig) -> GatewayConfig:
    """The part of `config` that the gateway's processes need. Without secrets."""
    settings = config.gateway
    return GatewayConfig(
        mesh=config.mesh.name,
        model_name=config.model.name,
        host=settings.host,
        port=settings.port,
        route_prefix=settings.route_prefix,
        max_queued_requests=settings.max_queued_requests,
        max_body_bytes=settings.max_request_body,
        body_timeout_s=settings.body_timeout_s,
        send_timeout_s=settings.send_timeout_s,
        replicas=settings.replicas,
        engine_wait_s=settings.engine_wait_s,
        migration_limit=settings.migration_limit,
        traffic_kinds=tuple(settings.traffic_kinds),
        key_names={key: name for name, key in config.batch.names.items()},
        logging=config.logging,
        telemetry=config.telemetry,
        batch=batch_settings(config),
    )
