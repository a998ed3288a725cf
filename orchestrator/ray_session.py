"""Start or join Ray, and leave it.

A mesh runs in a Ray session of its own unless the config names a cluster.
"""

import logging
import os

import ray

from orchestrator import process_tree
from orchestrator.config.schema import MeshConfig
from orchestrator.errors import UserError
from orchestrator.run_dir import RunDir

OBJECT_STORE_BYTES = 128 << 20
"""Tokens do not pass through Ray's object store; control calls need little."""
SPARE_CPUS = 8
"""Ray counts CPUs to place actors; controller, gateway and proxies share what is there."""

# Read by the raylet when it starts: workers at normal priority (the default niceness of 15 starves
# shards beside any other load), and no reports to the outside.
RAY_ENVIRONMENT = {
    "RAY_worker_niceness": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DISABLE_IMPORT_WARNING": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # A start that a signal ended early has an answer that nobody asks for any more.
    "RAY_IGNORE_UNHANDLED_ERRORS": "1",
}


def namespace_of(mesh: str) -> str:
    """Ray namespace that holds the named actors of a mesh."""
    return f"expertmesh-{mesh}"


def start_ray(config: MeshConfig, run_dir: RunDir) -> None:
    """Start a private Ray session, or join the cluster the config names; nobody's terminal is used.

    Raises:
        UserError: the named cluster does not answer.
    """
    os.environ.update(RAY_ENVIRONMENT)
    namespace = namespace_of(config.mesh.name)
    if config.cluster.ray_address is not None:
        try:
            ray.init(config.cluster.ray_address, namespace=namespace, log_to_driver=False)
        except ConnectionError as error:
            raise UserError(
                f"no Ray cluster answers at cluster.ray_address {config.cluster.ray_address}",
                f"start it, or leave the key out for a private session ({error})",
            ) from error
        return
    process_tree.adopt_orphans()
    threads = sum(pool.shards * pool.threads for pool in config.pools.values())
    ray.init(
        "local",
        namespace=namespace,
        num_cpus=threads + config.engines.replicas * config.engines.threads + SPARE_CPUS,
        object_store_memory=OBJECT_STORE_BYTES,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        _temp_dir=str(run_dir.ray),
    )
    _hush()


def _hush() -> None:
    """Keep what raylets report out of our stdout: it is in the session's logs anyway.

    Ray prints reports of dead workers whatever `log_to_driver` says; this is its debugger's switch.
    """
    ray._private.worker._worker_logs_enabled = False


def stop_ray(*, private: bool) -> None:
    """Leave the cluster; end a private session and every process of it. Idempotent."""
    segments = process_tree.shared_memory() if private else set()
    if ray.is_initialized():
        ray.shutdown()
    if private:
        process_tree.end_descendants()
        process_tree.remove_shared_memory(segments)
