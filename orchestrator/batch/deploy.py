"""What a mesh's config comes to for batch jobs."""

from orchestrator.batch.settings import BatchSettings
from orchestrator.config.schema import MeshConfig
from orchestrator.config.state_dir import state_dir


def batch_settings(config: MeshConfig) -> BatchSettings | None:
    """None where batch jobs are turned off."""
    if not config.batch.enabled:
        return None
    return BatchSettings(
        config=config.batch,
        folder=state_dir(config.cluster) / f"{config.mesh.name}-batch",
        model_name=config.model.name,
        max_line_bytes=config.gateway.max_request_body,
    )
