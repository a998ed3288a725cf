"""What Kubernetes and Ray call the devices of a pool, from the catalogue of device families."""

from dataclasses import dataclass

from actors.devices.catalogue import find_family, load_catalogue
from orchestrator.config.kubernetes import ENGINE_GROUP
from orchestrator.config.schema import MeshConfig
from orchestrator.errors import UserError


@dataclass(frozen=True, slots=True)
class DeviceNames:
    """kubernetes: resource of the vendor's device plugin, "" for none. ray: resource of a Ray node.

    KubeRay tells Ray by itself of resources that end in `gpu` only; all are declared.
    """

    kubernetes: str
    ray: str


CPU = DeviceNames("", "CPU")


def names_for(config: MeshConfig, pool_name: str) -> DeviceNames:
    """Raises UserError where neither the catalogue nor the config names the resource."""
    pool = config.pools[pool_name]
    if pool.device == "cpu":
        return CPU
    family = find_family(pool.vendor)
    resource = device_resource(config, pool_name) or family.kubernetes.resource
    if resource is None:
        raise UserError(
            f"pools.{pool_name}: no Kubernetes resource of {family.name} is known",
            f"set kubernetes.pods.{pool_name}.device_resource, such as example.com/npu",
        )
    # Without a word of Ray's, the first resource that its shards ask for is the device.
    ray = family.ray.resource if family.ray else next(iter(pool.resources), pool.vendor.upper())
    return DeviceNames(resource, ray)


def engine_device(config: MeshConfig) -> str:
    """The Kubernetes resource behind the Ray resource that engines ask for; "" for none.

    Of several vendors whose devices Ray calls the same, the one that has a pool.
    """
    if given := device_resource(config, ENGINE_GROUP):
        return given
    own = {pool.vendor for pool in config.pools.values()}
    families = sorted(load_catalogue().values(), key=lambda family: family.vendor not in own)
    for family in families:
        named, resource = family.ray, family.kubernetes.resource
        if named and resource and named.resource in config.engines.resources:
            return resource
    return ""


def device_resource(config: MeshConfig, group: str) -> str:
    pods = config.kubernetes.pods.get(group)
    return (pods and pods.device_resource) or ""
