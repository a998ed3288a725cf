"""Who may do what: the mesh's ServiceAccount, and a Role for `expertmesh k8s`. Pure."""

from orchestrator.config.schema import MeshConfig
from orchestrator.kubernetes.naming import Object, metadata, name_of

RBAC_GROUP = "rbac.authorization.k8s.io"
APPLY = ["get", "list", "create", "patch", "delete"]
"""Verbs of `expertmesh k8s` for what it renders; server-side apply is a patch that may create."""


def operator_name(config: MeshConfig) -> str:
    return f"{name_of(config)}-operator"


def access_objects(config: MeshConfig) -> list[Object]:
    return [service_account(config), operator_role(config)]


def service_account(config: MeshConfig) -> Object:
    """Without any rights: a mesh asks Kubernetes for nothing. With the autoscaler KubeRay binds a
    Role of its own to it."""
    return {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": metadata(config, name_of(config)),
        "automountServiceAccountToken": False,
    }


def operator_role(config: MeshConfig) -> Object:
    """What `expertmesh k8s` needs in the namespace, for whoever shall use it: bind it to them.

    Not Secrets: the commands name some, and read none.
    """
    rules = [
        _rule("ray.io", ["rayclusters", "rayjobs"], [*APPLY, "watch"]),
        _rule("", ["configmaps", "services", "persistentvolumeclaims", "serviceaccounts"], APPLY),
        _rule("networking.k8s.io", ["networkpolicies"], APPLY),
        _rule("policy", ["poddisruptionbudgets"], APPLY),
        _rule("", ["pods"], ["get", "list", "watch"]),
        # Kubernetes lets nobody hand out rights that they do not have.
        _rule(RBAC_GROUP, ["roles"], APPLY),
    ]
    if config.kubernetes.monitoring_namespace is not None:
        rules.append(_rule("monitoring.coreos.com", ["podmonitors", "prometheusrules"], APPLY))
    return {
        "apiVersion": f"{RBAC_GROUP}/v1",
        "kind": "Role",
        "metadata": metadata(config, operator_name(config)),
        "rules": rules,
    }


def _rule(group: str, resources: list[str], verbs: list[str]) -> Object:
    return {"apiGroups": [group], "resources": resources, "verbs": list(verbs)}
