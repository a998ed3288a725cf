"""Start or join Ray, and leave it.

A mesh runs in a Ray session of its own unless the config names a cluster.
"""

import logging
import os
import threading
from collections.abc import Collection

import ray
from ray.exceptions import AuthenticationError

from orchestrator.config.schema import MeshConfig
from orchestrator.core_shares import core_shares
from orchestrator.errors import UserError
from orchestrator.gateway.body_window import BODY_ENVIRONMENT
from orchestrator.preflight import ray_access
from orchestrator.run_dir import RunDir
from orchestrator.session import process_tree

RAY_TOO_SLOW = "timed out during startup"
"""What Ray says where its processes do not answer within 30 s, which cannot be set."""
OBJECT_STORE_BYTES = 128 << 20
"""Tokens do not pass through Ray's object store; control calls need little."""
LEAVE_TIMEOUT_S = 15.0
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
    # Serve gives a proxy up that is not ready after three times so long. On a busy machine the
    # default of 5 s is too little for what it imports, and the endpoint would not open.
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
    **BODY_ENVIRONMENT,
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
            ray.init(
                config.cluster.ray_address,
                namespace=namespace,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        except AuthenticationError as error:
            address = config.cluster.ray_address
            message = f"the Ray cluster at cluster.ray_address {address} asks for a token"
            raise UserError(message, ray_access.FIX) from error
        except ConnectionError as error:
            raise UserError(
                f"no Ray cluster answers at cluster.ray_address {config.cluster.ray_address}",
                f"start it, or leave the key out for a private session ({error})",
            ) from error
        _hush()
        return
    process_tree.adopt_orphans()
    # Temporary files of every process of the session go into the run folder, and with it.
    os.environ["TMPDIR"] = str(run_dir.scratch)
    engine_threads = core_shares(config).engine_threads
    threads = sum(pool.shards * pool.threads for pool in config.pools.values())
    try:
        ray.init(
            "local",
            namespace=namespace,
            num_cpus=threads + config.engines.replicas * engine_threads + SPARE_CPUS,
            object_store_memory=OBJECT_STORE_BYTES,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _temp_dir=str(run_dir.ray),
        )
    except Exception as error:  # Ray has no class of its own for it
        if RAY_TOO_SLOW not in str(error):
            raise
        raise UserError(
            "Ray did not start within 30 s",
            f"this machine is busy or short of memory: try again ({run_dir.ray} has Ray's logs)",
        ) from error
    _hush()


def _hush() -> None:
    """Keep what raylets report out of our stdout: it is in the session's logs anyway.

    Ray prints reports of dead workers whatever `log_to_driver` says; this is its debugger's switch.
    """
    ray._private.worker._worker_logs_enabled = False


def lost_process() -> str:
    """Name of a process that the private session cannot do without and that has ended; or ""."""
    node = ray._private.worker._global_node
    if node is None:
        return ""
    for name in ("gcs_server", "raylet"):
        if any(info.process.poll() is not None for info in node.all_processes.get(name, ())):
            return name
    return ""


def reap_ended(spared: Collection[int]) -> None:
    """Have the system forget processes of a private session that have ended, such as those of an
    engine that was killed. spared: those that this process started, besides Ray's own."""
    node = ray._private.worker._global_node
    if node is not None:
        started = [info for kind in node.all_processes.values() for info in kind]
        process_tree.reap_orphans({*spared, *(info.process.pid for info in started)})


def stop_ray(*, private: bool, spared: Collection[int] = ()) -> None:
    """Leave the cluster; end a private session and every process of it but those in `spared`.
    Idempotent."""
    segments = process_tree.shared_memory(process_tree.descendants(spared)) if private else set()
    if ray.is_initialized():
        _leave(in_time=private)
    if private:
        process_tree.end_descendants(spared=spared)
        process_tree.remove_shared_memory(segments)


def _leave(*, in_time: bool) -> None:
    """in_time: a session that has lost a process may keep `shutdown` waiting for it; then what is
    left of it is ended without."""
    leaving = threading.Thread(target=ray.shutdown, name="leave-ray", daemon=True)
    leaving.start()
    leaving.join(LEAVE_TIMEOUT_S if in_time else None)
