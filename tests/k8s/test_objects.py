"""Every object of every overlay is one that Kubernetes, KubeRay or Prometheus' operator takes."""

import os
from pathlib import Path

import jsonschema
import pytest
import yaml

from orchestrator.kubernetes.render import render
from tests.k8s import schemas
from tests.k8s.meshes import OVERLAYS, config, one, overlay

CRDS = os.environ.get("EXPERTMESH_TEST_KUBERAY_CRDS", "")


@pytest.mark.parametrize("name", OVERLAYS)
def test_every_object_is_as_its_schema_says(name):
    for item in render(overlay(name)):
        schemas.check(item)


def test_the_objects_suit_the_oldest_release_too():
    for item in render(overlay("mixed-nvidia-ascend-cambricon")):
        schemas.check(item, schemas.OLDEST)


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("Service", ("spec", "selektor"), {}),
        ("NetworkPolicy", ("spec", "policyTypes"), "Ingress"),
        ("RayCluster", ("spec", "rayversion"), "2.60.0"),
        ("RayJob", ("spec", "submissionMode"), "HttpMode"),
        ("PodMonitor", ("spec", "endpoints"), []),
    ],
)
def test_a_mistake_in_an_object_is_found(kind, path, value):
    item = one(overlay("nvidia"), kind, "expertmesh")
    item[path[0]][path[1]] = value
    with pytest.raises(jsonschema.ValidationError):
        schemas.check(item)


def test_a_mistake_in_a_pod_template_is_found():
    item = one(config(), "RayCluster")
    item["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["port"] = 1
    with pytest.raises(jsonschema.ValidationError):
        schemas.check(item)


def test_objects_are_named_once():
    for name in OVERLAYS:
        keys = [(o["kind"], o["metadata"]["name"]) for o in render(overlay(name))]
        assert len(keys) == len(set(keys))


@pytest.mark.skipif(not CRDS, reason="EXPERTMESH_TEST_KUBERAY_CRDS: KubeRay's config/crd/bases")
@pytest.mark.parametrize("kind", ["RayCluster", "RayJob"])
def test_kuberays_own_schema_takes_its_objects(kind):
    text = (Path(CRDS) / f"ray.io_{kind.lower()}s.yaml").read_text()
    crd = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    served = next(v for v in crd["spec"]["versions"] if v["name"] == "v1")
    schema = jsonschema.Draft202012Validator(_strict(served["schema"]["openAPIV3Schema"]))
    for name in OVERLAYS:
        item = one(overlay(name), kind)
        schema.validate(item)
        item["spec"]["enrypoint"] = "a field that there is not"
        assert not schema.is_valid(item)


def _strict(schema):
    """The schema with unknown fields as errors, as a server takes it with strict validation."""
    if not isinstance(schema, dict):
        return schema
    made = {key: _strict(value) for key, value in schema.items() if key != "properties"}
    if "properties" in schema:
        made["properties"] = {k: _strict(v) for k, v in schema["properties"].items()}
        made.setdefault("additionalProperties", False)
    if made.get("x-kubernetes-int-or-string"):
        made.pop("pattern", None)
    return made
