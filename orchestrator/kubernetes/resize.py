"""Make a group of pods larger or smaller without losing a request.

Up: more replicas, and when the pods are ready the mesh is asked for more shards. Down: the mesh
first gives up shards, which drains them; the pods that then hold none are named to KubeRay in
`workersToDelete`, in the same change that lowers the replicas. Lowering the replicas alone would
end a pod of KubeRay's choice (Ray's issue 57539). With Ray's autoscaler the mesh alone is asked: a
shard that finds no room makes the autoscaler add a pod, and it takes away pods without shards.
"""

from collections.abc import Callable, Iterable

from orchestrator.api.models import ClusterView
from orchestrator.errors import UserError
from orchestrator.kubernetes.api import ConflictError, KubernetesApi
from orchestrator.kubernetes.kinds import PODS, RAY_CLUSTER
from orchestrator.kubernetes.naming import Object
from orchestrator.kubernetes.standing import belongs, pod_labels

MAX_CONFLICTS = 5
"""Changes of somebody else that a change is tried again after."""


def read_cluster(api: KubernetesApi, namespace: str, name: str) -> Object:
    cluster = api.get(RAY_CLUSTER, namespace, name)
    if cluster is None:
        raise UserError(
            f"there is no RayCluster {name} in namespace {namespace}", "run `expertmesh k8s apply`"
        )
    return cluster


def group_spec(cluster: Object, group: str) -> Object:
    """A group as the cluster has it. Raises UserError where it has no such group."""
    groups = cluster["spec"].get("workerGroupSpecs", [])
    for found in groups:
        if found["groupName"] == group:
            return dict(found)
    names = ", ".join(found["groupName"] for found in groups)
    raise UserError(
        f"the cluster has no group {group} (it has {names})", "run `expertmesh k8s apply` first"
    )


def grow(api: KubernetesApi, namespace: str, name: str, group: str, pods: int) -> None:
    """Ask for so many pods. Idempotent. Raises UserError."""

    def changed(spec: Object) -> Object:
        return spec | {"replicas": pods, "maxReplicas": max(spec["maxReplicas"], pods)}

    _change(api, namespace, name, group, changed)


def shrink(api: KubernetesApi, namespace: str, name: str, group: str, victims: list[str]) -> None:
    """End these pods and no others. Raises UserError."""

    def changed(spec: Object) -> Object:
        left = max(0, spec["replicas"] - len(victims))
        return spec | {"replicas": left, "scaleStrategy": {"workersToDelete": victims}}

    _change(api, namespace, name, group, changed)


def forget_victims(api: KubernetesApi, namespace: str, name: str, group: str) -> None:
    """Once they are gone their names are of no use."""

    def changed(spec: Object) -> Object:
        return spec | {"scaleStrategy": {"workersToDelete": []}}

    _change(api, namespace, name, group, changed)


def group_pods(api: KubernetesApi, namespace: str, name: str, group: str) -> list[Object]:
    pods, _ = api.select(PODS, namespace, pod_labels(name))
    return [pod for pod in pods if belongs(pod, group)]


def pods_without_shards(pods: Iterable[Object], view: ClusterView) -> list[str]:
    """Names of the pods on which the mesh has nothing; newest first, as they have least in caches.

    A node is called like its pod, with the machine's boot id behind a slash.
    """
    busy = {place.node.partition("/")[0] for place in view.places if place.node}
    idle = [pod for pod in pods if pod["metadata"]["name"] not in busy]
    idle.sort(key=lambda pod: pod["metadata"].get("creationTimestamp", ""), reverse=True)
    return [pod["metadata"]["name"] for pod in idle]


def _change(
    api: KubernetesApi,
    namespace: str,
    name: str,
    group: str,
    changed: Callable[[Object], Object],
) -> None:
    """Patch a group as it is now; what somebody else changed meanwhile is read again."""
    for _ in range(MAX_CONFLICTS):
        cluster = read_cluster(api, namespace, name)
        wanted = changed(group_spec(cluster, group))
        groups = [
            wanted if found["groupName"] == group else found
            for found in cluster["spec"]["workerGroupSpecs"]
        ]
        try:
            api.patch(cluster, {"workerGroupSpecs": groups})
        except ConflictError:
            continue
        return
    raise UserError(
        f"RayCluster/{name} was changed by somebody else {MAX_CONFLICTS} times in a row",
        "try again when its other managers are done",
    )
