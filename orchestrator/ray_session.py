"""Start or join Ray, and leave nothing behind.

A mesh runs in a Ray session of its own unless the config names a cluster. Only processes this one
started are ever ended: a stranger's Ray on the same machine is not touched.
"""

import logging
import os
from collections.abc import Iterable

import psutil
import ray

from orchestrator.config.schema import MeshConfig
from orchestrator.errors import UserError
from orchestrator.run_dir import RunDir

log = logging.getLogger(__name__)

OBJECT_STORE_BYTES = 128 << 20
"""Tokens do not pass through Ray's object store; control calls need little."""
SPARE_CPUS = 8
"""Ray counts CPUs to place actors; controller, gateway and proxies share what is there."""
EXIT_TIMEOUT_S = 10.0

# Read by the raylet when it starts: workers at normal priority (the default niceness of 15 starves
# shards beside any other load), and no reports to the outside.
RAY_ENVIRONMENT = {
    "RAY_worker_niceness": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DISABLE_IMPORT_WARNING": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


def namespace_of(mesh: str) -> str:
    """Ray namespace that holds the named actors of a mesh."""
    return f"expertmesh-{mesh}"


def start_ray(config: MeshConfig, run_dir: RunDir) -> None:
    """Start a private Ray session, or join the cluster the config names.

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


def stop_ray(*, private: bool) -> None:
    """Leave the cluster; end a private session and every process of it. Idempotent."""
    started = _descendants() if private else []
    if ray.is_initialized():
        ray.shutdown()
    end_processes(started)


def _descendants() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


def end_processes(processes: Iterable[psutil.Process]) -> None:
    """Wait for processes that are on their way out, then kill those that stay."""
    _, alive = psutil.wait_procs(list(processes), timeout=EXIT_TIMEOUT_S)
    for process in alive:
        log.warning("killing %s (pid %d), which did not end by itself", *_name_of(process))
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(alive, timeout=EXIT_TIMEOUT_S)


def _name_of(process: psutil.Process) -> tuple[str, int]:
    try:
        return process.name(), process.pid
    except psutil.Error:
        return "a process", process.pid
