"""The Role that is rendered suffices for every command, and allows nothing beside them."""

import pytest
from kubernetes import client
from kubernetes.config import new_client_from_config

from tests.k8s.control_plane import kubeconfig_like
from tests.k8s.desk import MESH
from tests.k8s.real_cluster import Operator

RBAC = "rbac.authorization.k8s.io"


def token_of(real, account):
    """A service account, and a kubeconfig of its."""
    real.core.create_namespaced_service_account(real.namespace, {"metadata": {"name": account}})
    request = {"spec": {"audiences": [], "expirationSeconds": 3600}}
    made = real.core.create_namespaced_service_account_token(account, real.namespace, request)
    return kubeconfig_like(real.kubeconfig, real.folder / f"{account}.yaml", made.status.token)


@pytest.fixture
def operator(real):
    """Kubeconfig of somebody to whom the rendered Role is bound, and nothing else."""
    config = str(real.config(MESH))
    real.done("apply", config)
    file = token_of(real, "somebody")
    client.RbacAuthorizationV1Api(real.client).create_namespaced_role_binding(
        real.namespace,
        {
            "metadata": {"name": "somebody"},
            "roleRef": {"apiGroup": RBAC, "kind": "Role", "name": "chat-operator"},
            "subjects": [
                {"kind": "ServiceAccount", "name": "somebody", "namespace": real.namespace}
            ],
        },
    )
    return file


def test_the_role_suffices_for_every_verb(real, operator):
    config = str(real.config(MESH))
    with Operator(real, "chat"):
        assert real.done("apply", config, "--wait", "--timeout", "60", kubeconfig=operator)
        assert real.done("diff", config, kubeconfig=operator) == ""
        assert real.run("status", config, kubeconfig=operator)[0] == 0
        out = real.done("scale", config, "cpu", "5", "--dry-run", kubeconfig=operator)
        assert "cpu from 4 to 5 pods" in out
        changed = str(real.config(MESH.replace("shards: 4", "shards: 5")))
        assert real.run("diff", changed, kubeconfig=operator)[0] == 1
        assert real.done("apply", changed, "--restart", "--wait", kubeconfig=operator)
        real.done("delete", config, "--volumes", "--timeout", "60", kubeconfig=operator)


@pytest.mark.parametrize("verb", ["apply", "diff", "status", "delete"])
def test_without_the_role_each_verb_says_what_is_missing(real, verb):
    err = real.refused(verb, str(real.config(MESH)), kubeconfig=token_of(real, "nobody"))
    assert "error: you may not " in err
    assert f"in namespace {real.namespace}: have the Role MESH-operator bound to you" in err


def test_the_role_allows_nothing_beside_the_commands(real, operator):
    review = client.AuthorizationV1Api(
        new_client_from_config(str(operator))
    ).create_self_subject_rules_review({"spec": {"namespace": real.namespace}})
    allowed = {
        (group, resource, verb)
        for rule in review.status.resource_rules
        for group in rule.api_groups
        for resource in rule.resources
        for verb in rule.verbs
    }
    resources = {resource for _, resource, _ in allowed if "review" not in resource}
    assert not resources & {"secrets", "*", "pods/exec", "rolebindings", "nodes"}
    assert ("", "pods", "create") not in allowed
    assert ("", "pods", "delete") not in allowed


def test_the_role_cannot_be_widened_by_its_holder(real, operator):
    role = {"rules": [{"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]}]}
    api = client.RbacAuthorizationV1Api(new_client_from_config(str(operator)))
    with pytest.raises(client.ApiException) as refused:
        api.patch_namespaced_role("chat-operator", real.namespace, role)
    assert refused.value.status == 403
    assert "attempting to grant RBAC permissions not currently held" in refused.value.body
