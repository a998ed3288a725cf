"""What engines and shards get of the cores, where the config leaves it open.

An engine has the cores that shards and the rest leave. Where they leave none, it shares theirs: a
layer's attention and its experts take turns, so two threads of an engine on the two cores of two
shards are faster than one, as long as the threads of an engine spin for a moment between two
kernels (`SHORT_SPIN`) and no longer, for then the shards have work. Engines and shards watch for
each other's messages for long only where every thread has a core for itself
(`docs/performance.md` has the measurements).
"""

import os
from dataclasses import dataclass

from actors.wire.spin_time import DEFAULT_SPIN_US
from orchestrator.config.schema import MeshConfig

LONG_SPIN_US = 5000.0
"""Longer than a shard computes for in most steps: nobody sleeps in between."""

TAKING_TURNS = 2
"""Threads an engine has at least, where its share of the machine has as many cores. More have not
been measured on cores that shards need too."""

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
    cores = cores or available_cores()
    left = cores - shards - OTHER_PROCESSES
    at_least = max(1, min(TAKING_TURNS, cores // replicas))
    threads = given_threads or max(at_least, left // replicas)
    roomy = replicas * threads <= left
    return CoreShares(threads, _or(given_spin_us, LONG_SPIN_US if roomy else DEFAULT_SPIN_US))


def available_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _or(given: float | None, chosen: float) -> float:
    return chosen if given is None else given
