"""What engines and shards get of the cores, where the config leaves it open.

Engines and shards of a layer mostly take turns, but a thread that spins, or one more runnable
thread than there are cores, takes the core from whoever has work. So an engine has the cores that
shards and the rest leave, and at least one; and waits spin for long only where every thread has a
core for itself (`docs/performance.md` has the measurements).
"""

import os
from dataclasses import dataclass

from actors.wire.patience import DEFAULT_SPIN_US
from orchestrator.config.schema import MeshConfig

LONG_SPIN_US = 5000.0
"""Longer than a shard computes for in most steps: nobody sleeps in between."""

OTHER_PROCESSES = 1
"""Cores for gateway, controller and Ray together: they have little to do while tokens are made."""


@dataclass(frozen=True, slots=True)
class CoreShares:
    """engine_threads: CPU threads of each engine's kernels; spin_us: see `router.spin_us`."""

    engine_threads: int
    spin_us: float


def core_shares(config: MeshConfig, cores: int | None = None) -> CoreShares:
    """cores: of the one machine of a private mesh, None for this one. Which machine of a shared
    cluster an engine will be on is not known: one thread, short spins."""
    given_threads, given_spin_us = config.engines.threads, config.router.spin_us
    if config.cluster.ray_address is not None:
        return CoreShares(given_threads or 1, _or(given_spin_us, DEFAULT_SPIN_US))
    shards = sum(pool.shards * pool.threads for pool in config.pools.values())
    replicas = config.engines.replicas
    left = (cores or available_cores()) - shards - OTHER_PROCESSES
    threads = given_threads or max(1, left // replicas)
    roomy = replicas * threads <= left
    return CoreShares(threads, _or(given_spin_us, LONG_SPIN_US if roomy else DEFAULT_SPIN_US))


def available_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _or(given: float | None, chosen: float) -> float:
    return chosen if given is None else given
