"""What a mesh needs in its cluster's upkeep: disruption budgets and the state volume. Pure."""

from orchestrator.config.schema import MeshConfig
from orchestrator.kubernetes.naming import Object, metadata, name_of, pods_of, state_claim
from orchestrator.kubernetes.pods import ENGINE, HEAD, SHARD, memory_text


def upkeep_objects(config: MeshConfig) -> list[Object]:
    return [state_volume(config), *(budget(config, part) for part in (HEAD, ENGINE, SHARD))]


def budget(config: MeshConfig, part: str) -> Object:
    """How many pods of a kind may be evicted at once.

    One shard or one engine of the mesh: the rest of the pods' work has moved before the next goes.
    The head node: none, because the mesh would start again with it, unless Redis keeps what Ray
    knows.
    """
    keeps = part == HEAD and config.kubernetes.redis_address is None
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": metadata(config, f"{name_of(config)}-{part}"),
        "spec": {
            "maxUnavailable": 0 if keeps else 1,
            "selector": {"matchLabels": pods_of(config, part)},
        },
    }


def state_volume(config: MeshConfig) -> Object:
    """For the controller's journal and the batch jobs' ledger: one node writes it, the head's."""
    settings = config.kubernetes
    spec: Object = {
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": memory_text(settings.state_size)}},
    }
    if settings.state_storage_class is not None:
        spec["storageClassName"] = settings.state_storage_class
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": metadata(config, state_claim(config)),
        "spec": spec,
    }
