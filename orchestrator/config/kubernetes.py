"""The Kubernetes half of the config: what `expertmesh manifests render` has to know of a cluster.

A mesh that runs takes no notice of it. Secrets are named here, never written.
"""

from enum import StrEnum
from typing import Annotated

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from orchestrator.config.fields import ByteSize, Count, DnsName, PositiveFloat, Section

ENGINE_GROUP = "engine"
"""Name under `kubernetes.pods` of the engines' pods, as in `expertmesh scale engine 2`."""
HEAD_GROUP = "head"
_GIB = 1 << 30


def _check_image(image: str) -> str:
    name = image.rpartition("/")[2]
    if "@" not in image and (":" not in name or name.endswith(":latest")):
        raise ValueError(
            f"image {image} has no fixed version: add a tag other than latest, or a digest"
        )
    return image


Image = Annotated[str, StringConstraints(pattern=r"^[\w./:@-]+$"), AfterValidator(_check_image)]
HostPort = Annotated[str, StringConstraints(pattern=r"^[a-z0-9.-]+:\d{1,5}$")]
Path = Annotated[str, StringConstraints(pattern=r"^/[\w./-]+$")]


class TolerationEffect(StrEnum):
    NO_SCHEDULE = "NoSchedule"
    PREFER_NO_SCHEDULE = "PreferNoSchedule"
    NO_EXECUTE = "NoExecute"


class Toleration(Section):
    """A taint that pods of a group may run beside."""

    key: Annotated[str, StringConstraints(min_length=1)]
    """The taint's key."""
    value: str | None = None
    """The taint's value; unset: any."""
    effect: TolerationEffect = TolerationEffect.NO_SCHEDULE
    """`NoSchedule`, `PreferNoSchedule` or `NoExecute`."""


class PodsConfig(Section):
    """Pods of one group: of a pool's shards (its name), of the engines (`engine`) or Ray's head
    node with controller and gateway (`head`)."""

    image: Image | None = None
    """Image; unset: `kubernetes.image`. Devices of different vendors need images of their own."""
    shards_per_pod: Count = 1
    """Shards, or engines, that share a pod and its devices' node. With 1 a pod is a shard, and what
    scales or fails is one of both."""
    cpus: PositiveFloat | None = None
    """CPU cores of a pod; unset: what its shards' or engines' threads come to, and one for Ray."""
    memory: Annotated[ByteSize, Field(gt=0)] = 8 * _GIB
    """Host memory of a pod beside its shards' experts, where these are in host memory: `memory` of
    the pool is added for each shard."""
    device_resource: Annotated[str, StringConstraints(pattern=r"^[\w.-]+/[\w.-]+$")] | None = None
    """Kubernetes resource of the device, such as `huawei.com/npu`; unset: the vendor's own."""
    node_selector: dict[str, str] = Field(default_factory=dict)
    """Labels of the nodes these pods may run on."""
    tolerations: list[Toleration] = Field(default_factory=list)
    """Further taints they tolerate; a taint named like the device's resource always is."""
    runtime_class: DnsName | None = None
    """RuntimeClass, where the vendor's container runtime is not the default."""


class KubernetesConfig(Section):
    """A mesh in Kubernetes (docs/kubernetes.md)."""

    namespace: DnsName = "expertmesh"
    """Namespace of everything; it must exist."""
    image: Image = "expertmesh:0.1.0-cpu"
    """Image of every pod that `pods` gives no other; build one with `manifests/docker/`."""
    image_pull_secrets: list[DnsName] = Field(default_factory=list)
    """Secrets of the registry."""
    keys_secret: DnsName | None = None
    """Secret with `EXPERTMESH_API_KEYS` and, as you like, `EXPERTMESH_ADMIN_KEYS`,
    `EXPERTMESH_SECRET` and `PGPASSWORD`; unset: `MESH-keys`."""
    ray_token_secret: DnsName | None = None
    """Secret with Ray's token under `auth_token`; unset: KubeRay makes one."""
    model_path: Path = "/model"
    """Folder of the checkpoint in the containers."""
    model_claim: DnsName | None = None
    """PersistentVolumeClaim that holds the checkpoint and is mounted read-only at `model_path`;
    unset: the image has it there."""
    model_fingerprint: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")] | None = None
    """A pod does not start unless the checkpoint in its volume is this one
    (`expertmesh manifests fingerprint FOLDER`); unset: that of `model.path`, where it is here."""
    state_size: Annotated[ByteSize, Field(gt=0)] = 10 * _GIB
    """Volume of the head node for the controller's journal and the batch jobs' ledger."""
    state_storage_class: DnsName | None = None
    """Its storage class; unset: the cluster's default."""
    redis_address: HostPort | None = None
    """Redis that keeps Ray's own tables, such as `redis:6379`: shards and engines then live on when
    the head node's pod is replaced; unset: the mesh starts again with it."""
    redis_secret: DnsName | None = None
    """Secret with that Redis's password under `password`; unset: it asks for none."""
    autoscaler: bool = False
    """Ray's autoscaler adds and removes pods: they follow the shards that the mesh asks for, from
    `shards` to `max_shards` of a pool."""
    client_namespaces: list[DnsName] = Field(default_factory=list)
    """Namespaces whose pods may call the endpoint, besides the mesh's own."""
    operator_namespace: DnsName = "kuberay-operator"
    """Namespace of KubeRay's operator."""
    monitoring_namespace: DnsName | None = "monitoring"
    """Namespace of Prometheus and Grafana with their operator: gives PodMonitor, PrometheusRule and
    dashboards; `null`: none of them."""
    pods: dict[DnsName, PodsConfig] = Field(default_factory=dict)
    """Pods of each group, see below."""

    @model_validator(mode="after")
    def _secret_has_an_address(self) -> "KubernetesConfig":
        if self.redis_secret is not None and self.redis_address is None:
            raise ValueError("redis_secret needs redis_address")
        return self
