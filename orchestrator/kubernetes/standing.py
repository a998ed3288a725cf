"""How far a mesh is in the cluster: its pods by group, its Ray cluster, its job. Pure, but for
`look`."""

from collections.abc import Iterable
from dataclasses import dataclass

from orchestrator.kubernetes.api import KubernetesApi
from orchestrator.kubernetes.kinds import PODS, RAY_CLUSTER, RAY_JOB
from orchestrator.kubernetes.naming import CLUSTER_LABEL, GROUP_LABEL, NODE_TYPE_LABEL, Object
from orchestrator.kubernetes.trouble import is_ready, trouble_of

HEAD = "head"
RUNNING = "RUNNING"
OVER = ("FAILED", "STOPPED", "SUCCEEDED")


@dataclass(frozen=True, slots=True)
class GroupStanding:
    """Pods of one group."""

    name: str
    wanted: int
    ready: int
    there: int


@dataclass(frozen=True, slots=True)
class Standing:
    """cluster: Ray cluster's state, job: of `expertmesh serve` there; "" where there is none.

    troubles: what keeps pods from running, one line each.
    """

    cluster: str
    job: str
    job_message: str
    groups: tuple[GroupStanding, ...]
    troubles: tuple[str, ...]

    @property
    def pods_ready(self) -> bool:
        return bool(self.groups) and all(g.ready >= g.wanted for g in self.groups)

    @property
    def started(self) -> bool:
        """Every pod is there and the mesh's process runs; whether it serves, it says itself."""
        return self.pods_ready and self.job == RUNNING

    @property
    def line(self) -> str:
        """For progress: what is there of what."""
        pods = ", ".join(f"{g.name} {g.ready}/{g.wanted}" for g in self.groups)
        return f"pods ready: {pods or 'none yet'}; job: {self.job or 'waits for all of them'}"


def pod_labels(name: str) -> dict[str, str]:
    """Labels that KubeRay gives the pods of a Ray cluster."""
    return {CLUSTER_LABEL: name}


def look(api: KubernetesApi, namespace: str, name: str) -> Standing | None:
    """How far the mesh is; None where it is not there. Raises UserError."""
    cluster = api.get(RAY_CLUSTER, namespace, name)
    if cluster is None:
        return None
    job = api.get(RAY_JOB, namespace, name)
    pods, _ = api.select(PODS, namespace, pod_labels(name))
    return standing(cluster, job, pods)


def standing(cluster: Object, job: Object | None, pods: Iterable[Object]) -> Standing:
    pods = list(pods)
    wanted = {HEAD: 1} | {
        group["groupName"]: group.get("replicas", 0)
        for group in cluster["spec"].get("workerGroupSpecs", [])
    }
    status = (job or {}).get("status", {})
    return Standing(
        cluster=cluster.get("status", {}).get("state", "") or "not ready",
        job=status.get("jobStatus", "") or status.get("jobDeploymentStatus", ""),
        job_message=" ".join(str(status.get("message", "")).split()),
        groups=tuple(_group(name, size, pods) for name, size in wanted.items()),
        troubles=tuple(said for said in map(trouble_of, pods) if said),
    )


def _group(name: str, wanted: int, pods: list[Object]) -> GroupStanding:
    own = [pod for pod in pods if belongs(pod, name)]
    return GroupStanding(name, wanted, sum(map(is_ready, own)), len(own))


def belongs(pod: Object, group: str) -> bool:
    """KubeRay labels pods with their group, and the head's as the head."""
    labels = pod["metadata"].get("labels", {})
    if labels.get(NODE_TYPE_LABEL) == HEAD:
        return group == HEAD
    return bool(labels.get(GROUP_LABEL) == group)
