"""A real API server as the tests use it: somebody at a terminal, and what KubeRay's operator does.

No KubeRay runs there. `Operator` writes what its operator would: pods from the groups' templates,
the states of cluster and job, and a finalizer that holds a job until it has been stopped.
"""

import copy
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from kubernetes import client
from kubernetes.config import new_client_from_config

from orchestrator.cli.main import main
from orchestrator.kubernetes.api import KubernetesApi
from orchestrator.kubernetes.kinds import PODS, RAY_CLUSTER, RAY_JOB, Kind
from orchestrator.kubernetes.standing import belongs, pod_labels

JOB_FINALIZER = "ray.io/rayjob-finalizer"
STRATEGIC = {"Content-Type": "application/merge-patch+json"}


@dataclass
class RealCluster:
    """Somebody at a terminal, a namespace of a test's own and the official client."""

    kubeconfig: Path
    namespace: str
    folder: Path
    capsys: Any
    url: str = ""

    def __post_init__(self) -> None:
        self.client = new_client_from_config(str(self.kubeconfig))
        self.api = KubernetesApi.connect(self.kubeconfig)
        self.core = client.CoreV1Api(self.client)
        self.minor = int(client.VersionApi(self.client).get_code().minor.rstrip("+"))

    def config(self, text: str) -> Path:
        file = self.folder / "mesh.yaml"
        file.write_text(
            text.replace("namespace: null", f"namespace: null, namespace: {self.namespace}")
        )
        return file

    def run(self, verb: str, *arguments: str, kubeconfig: Path | None = None):
        """(exit code, output, error)"""
        given = [verb, *arguments, "--kubeconfig", str(kubeconfig or self.kubeconfig)]
        with pytest.raises(SystemExit) as ended:
            main(["k8s", *given])
        out, err = self.capsys.readouterr()
        return ended.value.code or 0, out, err

    def done(self, verb: str, *arguments: str, kubeconfig: Path | None = None) -> str:
        """Output of a command that has to succeed."""
        code, out, err = self.run(verb, *arguments, kubeconfig=kubeconfig)
        assert (code, err) == (0, ""), (out, err)
        return out

    def refused(self, verb: str, *arguments: str, kubeconfig: Path | None = None) -> str:
        """The one line on stderr."""
        code, _, err = self.run(verb, *arguments, kubeconfig=kubeconfig)
        assert code == 2, err
        assert err.count("\n") == 1, err
        return err

    def merge(self, kind: Kind, name: str, body: Any, *, part: str = "", manager: str) -> Any:
        """Change an object as somebody else does. part: `/status` for that alone."""
        return self.client.call_api(
            f"{kind.path(self.namespace, name)}{part}",
            "PATCH",
            query_params=[("fieldManager", manager)],
            header_params=STRATEGIC | {"Accept": "application/json"},
            body=body,
            response_types_map={200: "object"},
            auth_settings=["BearerToken"],
            _return_http_data_only=True,
        )

    def group(self, name: str, cluster: str = "chat") -> dict[str, Any]:
        spec = self.api.get(RAY_CLUSTER, self.namespace, cluster)["spec"]
        return next(g for g in spec["workerGroupSpecs"] if g["groupName"] == name)


def for_server(objects: list[dict[str, Any]], minor: int) -> list[dict[str, Any]]:
    """The objects as a server before 1.22 can have them, where budgets are beta and policies take
    no ranges of ports; any newer one gets them as they are."""
    made = copy.deepcopy(objects)
    for item in made:
        if item["kind"] == "PodDisruptionBudget" and minor < 21:
            item["apiVersion"] = "policy/v1beta1"
        if item["kind"] == "NetworkPolicy" and minor < 22:
            for rule in [*item["spec"]["ingress"], *item["spec"]["egress"]]:
                for port in rule["ports"]:
                    port.pop("endPort", None)
    return made


@dataclass
class Operator:
    """What KubeRay's operator does for one mesh, until the block ends."""

    cluster: RealCluster
    name: str
    ended: list[str] = field(default_factory=list)
    names: dict[str, list[str]] = field(default_factory=dict)
    """Names of the next pods of a group."""
    _made: int = 0

    def __enter__(self) -> "Operator":
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _work(self) -> None:
        while not self._over.is_set():
            try:
                self.reconcile()
            except client.ApiException as error:
                if error.status not in (404, 409):  # changed or gone meanwhile
                    raise
            time.sleep(0.1)

    def reconcile(self) -> None:
        found = self.cluster.api.get(RAY_CLUSTER, self.cluster.namespace, self.name)
        if found is not None and "deletionTimestamp" not in found["metadata"]:
            self._pods(found)
            self._state(RAY_CLUSTER, found, {"state": "ready"})
        self._job()

    def _pods(self, found: dict[str, Any]) -> None:
        pods, _ = self.cluster.api.select(PODS, self.cluster.namespace, pod_labels(self.name))
        head = found["spec"]["headGroupSpec"] | {"groupName": "head", "replicas": 1}
        for group in [head, *found["spec"]["workerGroupSpecs"]]:
            there = [pod["metadata"]["name"] for pod in pods if belongs(pod, group["groupName"])]
            for name in set(there) & set(group.get("scaleStrategy", {}).get("workersToDelete", [])):
                self.ended.append(name)
                self.cluster.core.delete_namespaced_pod(name, self.cluster.namespace)
                there.remove(name)
            for _ in range(group["replicas"] - len(there)):
                self._start(found, group)

    def _start(self, owner: dict[str, Any], group: dict[str, Any]) -> None:
        self._made += 1
        given = self.names.get(group["groupName"], [])
        name = given.pop(0) if given else f"{self.name}-{group['groupName']}-{self._made:03}"
        pod = pod_of(owner, group, name)
        self.cluster.core.create_namespaced_pod(self.cluster.namespace, pod)
        ready = {"type": "Ready", "status": "True"}
        self.cluster.core.patch_namespaced_pod_status(
            name, self.cluster.namespace, {"status": {"conditions": [ready]}}
        )

    def _job(self) -> None:
        job = self.cluster.api.get(RAY_JOB, self.cluster.namespace, self.name)
        if job is None:
            return
        if "deletionTimestamp" in job["metadata"]:
            self._finalizers(job, [])
        elif JOB_FINALIZER not in job["metadata"].get("finalizers", []):
            self._finalizers(job, [JOB_FINALIZER])
        else:
            said = {"jobId": "j", "jobStatus": "RUNNING", "jobDeploymentStatus": "Running"}
            self._state(RAY_JOB, job, said)

    def _finalizers(self, job: dict[str, Any], names: list[str]) -> None:
        body = {"metadata": {"finalizers": names}}
        self.cluster.merge(RAY_JOB, self.name, body, manager="kuberay-operator")

    def _state(self, kind: Kind, found: dict[str, Any], said: dict[str, Any]) -> None:
        if said.items() <= found.get("status", {}).items():
            return
        body = {"status": said}
        self.cluster.merge(kind, self.name, body, part="/status", manager="kuberay-operator")


def pod_of(owner: dict[str, Any], group: dict[str, Any], name: str) -> dict[str, Any]:
    """A pod of a group's template, with KubeRay's labels, owned by the Ray cluster."""
    template, cluster = group["template"], owner["metadata"]
    kind = "head" if group["groupName"] == "head" else "worker"
    labels = {
        "ray.io/cluster": cluster["name"],
        "ray.io/group": f"{group['groupName']}group" if kind == "head" else group["groupName"],
        "ray.io/node-type": kind,
    }
    reference = {
        "apiVersion": owner["apiVersion"], "kind": owner["kind"], "name": cluster["name"],
        "uid": cluster["uid"], "controller": True, "blockOwnerDeletion": True,
    }  # fmt: skip
    made = template["metadata"] | {"name": name, "ownerReferences": [reference]}
    made["labels"] = template["metadata"].get("labels", {}) | labels
    return {"apiVersion": "v1", "kind": "Pod", "metadata": made, "spec": template["spec"]}
