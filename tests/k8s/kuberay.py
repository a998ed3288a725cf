"""KubeRay's operator, as far as the commands see it: pods for groups, states of cluster and job.

As the real one it ends the pods that `workersToDelete` names, and where replicas are lowered
without naming any it ends some pod of its own choice: here the oldest, which is the wrong one.
"""

from dataclasses import dataclass, field
from typing import Any

from tests.k8s.api_store import Key, Store

CLUSTERS, JOBS, PODS = "/apis/ray.io/v1/rayclusters", "/apis/ray.io/v1/rayjobs", "/api/v1/pods"


@dataclass
class Operator:
    """hold: groups whose new pods stay as `pending` says. names: of the next pods of a group."""

    pending: dict[str, dict[str, Any]] = field(default_factory=dict)
    names: dict[str, list[str]] = field(default_factory=dict)
    job_status: str = "RUNNING"
    ended: list[str] = field(default_factory=list)
    _made: int = 0
    _busy: bool = False

    def __call__(self, store: Store) -> None:
        if self._busy:
            return
        self._busy = True
        try:
            self._reconcile(store)
        finally:
            self._busy = False

    def _reconcile(self, store: Store) -> None:
        clusters = [key for key in store.objects if key[0] == CLUSTERS]
        for key in [k for k in store.objects if k[0] == PODS]:
            owner = store.objects[key]["metadata"]["labels"]["ray.io/cluster"]
            if (CLUSTERS, key[1], owner) not in clusters:
                store.delete(key)
        for key in clusters:
            self._pods(store, key)
            ready = all(is_ready(store.objects[pod]) for pod in pods_of(store, key))
            store.set_status(key, {"state": "ready" if ready else ""})
            job = (JOBS, key[1], key[2])
            if job in store.objects:
                store.set_status(job, {"jobStatus": self.job_status if ready else ""})

    def _pods(self, store: Store, cluster: Key) -> None:
        if not pods_of(store, cluster, "headgroup"):
            self._start(store, cluster, "headgroup")
        for group in store.objects[cluster]["spec"]["workerGroupSpecs"]:
            name, wanted = group["groupName"], min(group["replicas"], group["maxReplicas"])
            for victim in group.get("scaleStrategy", {}).get("workersToDelete", []):
                if (PODS, cluster[1], victim) in store.objects:
                    self._end(store, (PODS, cluster[1], victim))
            there = pods_of(store, cluster, name)
            for pod in there[: max(0, len(there) - wanted)]:
                self._end(store, pod)
            for _ in range(wanted - len(there)):
                self._start(store, cluster, name)

    def _start(self, store: Store, cluster: Key, group: str) -> None:
        self._made += 1
        given = self.names.get(group, [])
        name = given.pop(0) if given else f"{cluster[2]}-{group}-{self._made:03}"
        kind = "head" if group == "headgroup" else "worker"
        labels = {"ray.io/cluster": cluster[2], "ray.io/group": group, "ray.io/node-type": kind}
        store.put(
            (PODS, cluster[1], name),
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {
                    "name": name,
                    "namespace": cluster[1],
                    "labels": labels,
                    "creationTimestamp": f"2026-11-26T12:00:{self._made:02}Z",
                },
                "status": self.pending.get(group, {"conditions": [READY]}),
            },
        )

    def _end(self, store: Store, pod: Key) -> None:
        self.ended.append(pod[2])
        store.delete(pod)


READY = {"type": "Ready", "status": "True"}


def is_ready(pod: dict[str, Any]) -> bool:
    return READY in pod["status"].get("conditions", [])


def pods_of(store: Store, cluster: Key, group: str = "") -> list[Key]:
    """Oldest first."""
    found = [
        (key, item["metadata"])
        for key, item in store.objects.items()
        if key[0] == PODS and item["metadata"]["labels"]["ray.io/cluster"] == cluster[2]
    ]
    found = [(k, m) for k, m in found if group in ("", m["labels"]["ray.io/group"])]
    return [key for key, _ in sorted(found, key=lambda pair: pair[1]["creationTimestamp"])]
