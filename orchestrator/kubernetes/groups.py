"""The groups of pods of a mesh: what each holds and asks for. Pure.

One pod holds `shards_per_pod` shards of one pool (or engines) and the devices they need.
"""

import math
from dataclasses import dataclass

from orchestrator.config.kubernetes import ENGINE_GROUP, HEAD_GROUP, PodsConfig
from orchestrator.config.schema import MeshConfig
from orchestrator.core_shares import core_shares
from orchestrator.errors import UserError
from orchestrator.kubernetes.device_names import engine_device, names_for

RAY_CPUS = 1.0
"""Cores of a pod for Ray's own processes."""
GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Group:
    """One worker group.

    vendor: of the devices, "" where there are none or the config does not say. least, most: pods.
    device, devices: Kubernetes resource ("" for none) and how many of it a pod has. ray: what a
    pod's Ray node offers.
    """

    name: str
    vendor: str
    pods: PodsConfig
    least: int
    most: int
    cpus: float
    memory_bytes: int
    device: str
    devices: int
    ray: dict[str, float]


def pods_config(config: MeshConfig, name: str) -> PodsConfig:
    return config.kubernetes.pods.get(name, PodsConfig())


def groups_of(config: MeshConfig, inside: MeshConfig) -> list[Group]:
    """The engines' group and one for each pool. inside: `mesh_config.in_cluster`.

    Raises:
        UserError: a pool that cannot be a group.
    """
    for taken in (ENGINE_GROUP, HEAD_GROUP):
        if taken in config.pools:
            raise UserError(f"pools.{taken}: in Kubernetes that name is taken", "rename the pool")
    return [engine_group(config, inside), *(pool_group(config, inside, p) for p in config.pools)]


def pool_group(config: MeshConfig, inside: MeshConfig, name: str) -> Group:
    pool, pods = inside.pools[name], pods_config(config, name)
    each, device = pods.shards_per_pod, names_for(config, name)
    shards = pool.shards + pool.spares
    experts_bytes = (pool.memory or 0) if pool.device == "cpu" else 0
    return Group(
        name=name,
        vendor=pool.vendor if device.kubernetes else "",
        pods=pods,
        least=math.ceil(shards / each),
        most=math.ceil(max(shards, pool.max_shards) / each),
        cpus=pods.cpus or pool.threads * each + RAY_CPUS,
        memory_bytes=pods.memory + experts_bytes * each,
        device=device.kubernetes,
        devices=math.ceil(pool.resources[device.ray] * each) if device.kubernetes else 0,
        ray=_offered(pool.threads, pool.resources, each),
    )


def engine_group(config: MeshConfig, inside: MeshConfig) -> Group:
    engines, pods, device = inside.engines, pods_config(config, ENGINE_GROUP), engine_device(config)
    each, threads = pods.shards_per_pod, core_shares(inside).engine_threads
    cache_bytes = 0 if device else engines.kv_cache_gib * GIB
    wanted = max(config.engines.resources.values(), default=1)
    return Group(
        name=ENGINE_GROUP,
        vendor="",
        pods=pods,
        least=math.ceil(engines.replicas / each),
        most=math.ceil(max(engines.replicas, engines.max_replicas) / each),
        cpus=pods.cpus or threads * each + RAY_CPUS,
        memory_bytes=pods.memory + cache_bytes * each,
        device=device,
        devices=math.ceil(wanted * each) if device else 0,
        ray=_offered(threads, engines.resources, each),
    )


def _offered(threads: int, resources: dict[str, float], each: int) -> dict[str, float]:
    return {"CPU": threads * each} | {name: amount * each for name, amount in resources.items()}
