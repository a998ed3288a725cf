"""Where the API server has the kinds of objects that a mesh needs."""

from dataclasses import dataclass

from orchestrator.kubernetes.naming import Object


@dataclass(frozen=True, slots=True)
class Kind:
    """group: "" for Kubernetes' core. installs: who brings it, where not every cluster has it."""

    group: str
    version: str
    plural: str
    installs: str = ""

    @property
    def api(self) -> str:
        """`v1` or `GROUP/VERSION`."""
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def root(self) -> str:
        return f"/apis/{self.api}" if self.group else f"/api/{self.version}"

    def path(self, namespace: str, name: str = "") -> str:
        folder = f"{self.root}/namespaces/{namespace}/{self.plural}"
        return f"{folder}/{name}" if name else folder


KUBERNETES = "Kubernetes"
KUBERAY = "KubeRay's operator"
PROMETHEUS = "Prometheus' operator"
RAY_CLUSTER = Kind("ray.io", "v1", "rayclusters", KUBERAY)
RAY_JOB = Kind("ray.io", "v1", "rayjobs", KUBERAY)
PODS = Kind("", "v1", "pods")

KINDS = {
    "RayCluster": RAY_CLUSTER,
    "RayJob": RAY_JOB,
    "ConfigMap": Kind("", "v1", "configmaps"),
    "Service": Kind("", "v1", "services"),
    "ServiceAccount": Kind("", "v1", "serviceaccounts"),
    "PersistentVolumeClaim": Kind("", "v1", "persistentvolumeclaims"),
    "NetworkPolicy": Kind("networking.k8s.io", "v1", "networkpolicies"),
    "PodDisruptionBudget": Kind("policy", "v1", "poddisruptionbudgets", KUBERNETES),
    "Role": Kind("rbac.authorization.k8s.io", "v1", "roles"),
    "PodMonitor": Kind("monitoring.coreos.com", "v1", "podmonitors", PROMETHEUS),
    "PrometheusRule": Kind("monitoring.coreos.com", "v1", "prometheusrules", PROMETHEUS),
}


def kind_of(item: Object) -> Kind:
    return KINDS[item["kind"]]


def title(item: Object) -> str:
    """`RayCluster/demo`, for people."""
    return f"{item['kind']}/{item['metadata']['name']}"
