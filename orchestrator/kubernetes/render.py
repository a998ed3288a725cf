"""A mesh's config as Kubernetes objects: the same config that `expertmesh serve` reads. Pure, but
for the rules and dashboards that it reads from `dashboards/`."""

from orchestrator.config.schema import MeshConfig
from orchestrator.kubernetes.access import access_objects
from orchestrator.kubernetes.groups import groups_of
from orchestrator.kubernetes.mesh_config import config_objects, in_cluster
from orchestrator.kubernetes.monitoring import monitoring_objects
from orchestrator.kubernetes.naming import Object, name_of
from orchestrator.kubernetes.network import network_objects
from orchestrator.kubernetes.ray_objects import ray_cluster, ray_job
from orchestrator.kubernetes.upkeep import upkeep_objects


def render(config: MeshConfig) -> list[Object]:
    """All objects, in the order in which they are applied: what others refer to comes first.

    Raises:
        UserError: the config says something that Kubernetes cannot have.
    """
    name_of(config)
    inside = in_cluster(config)
    groups = groups_of(config, inside)
    return [
        *access_objects(config),
        *config_objects(config),
        *upkeep_objects(config),
        *network_objects(config),
        ray_cluster(config, groups),
        ray_job(config, inside),
        *monitoring_objects(config),
    ]


def file_name(item: Object) -> str:
    """A file for each object: `rayjob-demo.yaml`."""
    return f"{item['kind'].lower()}-{item['metadata']['name']}.yaml"
