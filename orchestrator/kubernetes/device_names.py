"""What Kubernetes and Ray call the devices of each vendor."""

import difflib
from dataclasses import dataclass

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
NAMES = {
    "nvidia": DeviceNames("nvidia.com/gpu", "GPU"),
    "ascend": DeviceNames("huawei.com/Ascend910", "NPU"),
    "cambricon": DeviceNames("cambricon.com/mlu", "MLU"),
}


def names_for(config: MeshConfig, pool_name: str) -> DeviceNames:
    """Raises UserError for an unknown vendor whose resource the config does not say."""
    pool = config.pools[pool_name]
    if pool.device == "cpu":
        return CPU
    known, given = NAMES.get(pool.vendor), device_resource(config, pool_name)
    if known is None and not given:
        near = difflib.get_close_matches(pool.vendor, NAMES, n=1)
        meant = f" (did you mean {near[0]}?)" if near else ""
        raise UserError(
            f"pools.{pool_name}: no Kubernetes resource is known for vendor {pool.vendor}{meant}",
            f"set kubernetes.pods.{pool_name}.device_resource, such as example.com/npu",
        )
    # The first Ray resource that a pool of an unknown vendor asks for is its device.
    ray = known.ray if known else next(iter(pool.resources), pool.vendor.upper())
    return DeviceNames(given or (known.kubernetes if known else ""), ray)


def engine_device(config: MeshConfig) -> str:
    """The Kubernetes resource behind the Ray resource that engines ask for; "" for none."""
    wanted = config.engines.resources
    found = [names.kubernetes for names in NAMES.values() if names.ray in wanted]
    return device_resource(config, ENGINE_GROUP) or (found[0] if found else "")


def device_resource(config: MeshConfig, group: str) -> str:
    pods = config.kubernetes.pods.get(group)
    return (pods and pods.device_resource) or ""
