"""A real API server takes every object of every overlay, and a pod of every group's template."""

import time

import pytest
from kubernetes import client

from orchestrator.kubernetes.kinds import kind_of, title
from orchestrator.kubernetes.kustomize import objects_of
from orchestrator.kubernetes.render import render
from tests.k8s.meshes import OVERLAYS, overlay
from tests.k8s.real_cluster import for_server, pod_of


def objects(real, name, make=render):
    """As they are rendered, in the test's namespace."""
    for item in for_server(make(overlay(name)), real.minor):
        item["metadata"]["namespace"] = real.namespace
        yield item


@pytest.mark.parametrize("name", OVERLAYS)
def test_every_object_is_admitted(real, name):
    refused = {}
    for item in objects(real, name):
        kind = kind_of(item)
        if kind.installs and not real.api.served_versions(kind.group):
            assert kind.group == "monitoring.coreos.com"
            continue
        try:
            applied = real.api.apply(item)
        except Exception as error:
            refused[title(item)] = str(error)
        else:
            assert lacking(item, applied) == [], title(item)
    assert refused == {}


def lacking(wanted, there, path=""):
    """Fields that the server dropped or changed."""
    if isinstance(wanted, dict) and isinstance(there, dict):
        return [x for k, v in wanted.items() for x in lacking(v, there.get(k), f"{path}.{k}")]
    if isinstance(wanted, list) and isinstance(there, list) and len(wanted) == len(there):
        pairs = zip(wanted, there, strict=True)
        return [x for n, (v, t) in enumerate(pairs) for x in lacking(v, t, f"{path}[{n}]")]
    return [] if wanted == there else [f"{path}: {wanted!r} became {there!r}"]


@pytest.mark.parametrize("name", OVERLAYS)
def test_pods_of_every_template_are_admitted(real, name):
    core = client.CoreV1Api(real.client)
    refused = {}
    for item in objects(real, name, objects_of):
        if item["kind"] == "ServiceAccount":
            real.api.apply(item)
        if item["kind"] != "RayCluster":
            continue
        owner = real.api.apply(item)
        head = owner["spec"]["headGroupSpec"] | {"groupName": "head"}
        for group in [head, *item["spec"]["workerGroupSpecs"]]:
            pod = pod_of(owner, group, f"p-{group['groupName']}")
            if why := refusal(core, real.namespace, pod):
                refused[group["groupName"]] = why
    assert refused == {}


def refusal(core, namespace, pod):
    """What the server has against a pod. Old servers give an account its token after a moment."""
    for _ in range(100):
        try:
            core.create_namespaced_pod(namespace, pod, dry_run="All")
        except client.ApiException as error:
            if "retry after the token" not in error.body:
                return error.body
            time.sleep(0.1)
        else:
            return ""
    return "its service account got no token"
