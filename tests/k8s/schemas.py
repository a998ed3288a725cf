"""Schemas that objects are held to.

Core objects: Kubernetes' own OpenAPI, as the package kubernetes-validate ships it, in its strict
form, which refuses unknown fields. KubeRay's and Prometheus' operator's objects: schemas of ours
below, reduced to the fields that are rendered, written from their documentation, which refuse
everything else too; pod templates inside are held to Kubernetes' own schema.
"""

from typing import Any

import jsonschema
import kubernetes_validate

KUBERNETES = "1.37"
OLDEST = "1.29"
"""Oldest release whose schemas the objects are held to as well."""

Schema = dict[str, Any]


def closed(required: tuple[str, ...] = (), **properties: Schema) -> Schema:
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


TEXT: Schema = {"type": "string"}
COUNT: Schema = {"type": "integer", "minimum": 0}
FLAG: Schema = {"type": "boolean"}
TEXTS: Schema = {"type": "object", "additionalProperties": TEXT}
ANY: Schema = {"type": "object"}
METADATA = closed(("name", "namespace"), name=TEXT, namespace=TEXT, labels=TEXTS, annotations=TEXTS)
SECRET_REFERENCE = closed(("name", "key"), name=TEXT, key=TEXT)
SECURITY = closed(
    allowPrivilegeEscalation=FLAG,
    capabilities=closed(drop={"type": "array", "items": TEXT}),
)
LABEL_SELECTOR = closed(("matchLabels",), matchLabels=TEXTS)

WORKER_GROUP = closed(
    ("groupName", "rayStartParams", "template", "minReplicas", "maxReplicas"),
    groupName=TEXT,
    replicas=COUNT,
    minReplicas=COUNT,
    maxReplicas=COUNT,
    rayStartParams=TEXTS,
    resources=TEXTS,
    labels=TEXTS,
    template=ANY,
    scaleStrategy=closed(workersToDelete={"type": "array", "items": TEXT}),
)
RAY_CLUSTER = closed(
    ("headGroupSpec",),
    rayVersion=TEXT,
    authOptions=closed(mode={"enum": ["token", "disabled"]}, secretName=TEXT),
    enableInTreeAutoscaling=FLAG,
    autoscalerOptions=closed(idleTimeoutSeconds=COUNT, resources=ANY, securityContext=SECURITY),
    gcsFaultToleranceOptions=closed(
        redisAddress=TEXT,
        redisPassword=closed(valueFrom=closed(secretKeyRef=SECRET_REFERENCE)),
    ),
    headGroupSpec=closed(
        ("rayStartParams", "template"), rayStartParams=TEXTS, resources=TEXTS, template=ANY
    ),
    workerGroupSpecs={"type": "array", "items": WORKER_GROUP},
)
RAY_JOB = closed(
    ("entrypoint",),
    clusterSelector=TEXTS,
    submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
    entrypoint=TEXT,
    shutdownAfterJobFinishes=FLAG,
)
POD_MONITOR = closed(
    ("selector", "podMetricsEndpoints"),
    selector=LABEL_SELECTOR,
    podMetricsEndpoints={
        "type": "array",
        "items": closed(
            port=TEXT,
            path=TEXT,
            interval=TEXT,
            authorization=closed(type=TEXT, credentials=SECRET_REFERENCE),
        ),
    },
)
RULE = closed(
    ("expr",),
    record=TEXT,
    alert=TEXT,
    expr=TEXT,
    labels=TEXTS,
    annotations=TEXTS,
    **{"for": TEXT, "keep_firing_for": TEXT},
)
RULES = {"type": "array", "items": RULE}
PROMETHEUS_RULE = closed(
    ("groups",),
    groups={"type": "array", "items": closed(("name", "rules"), name=TEXT, rules=RULES)},
)

OURS = {
    ("ray.io/v1", "RayCluster"): RAY_CLUSTER,
    ("ray.io/v1", "RayJob"): RAY_JOB,
    ("monitoring.coreos.com/v1", "PodMonitor"): POD_MONITOR,
    ("monitoring.coreos.com/v1", "PrometheusRule"): PROMETHEUS_RULE,
}


def check(item: dict[str, Any], release: str = KUBERNETES) -> None:
    """Raises jsonschema.ValidationError where the object is not as its schema says."""
    spec = OURS.get((item["apiVersion"], item["kind"]))
    if spec is None:
        kubernetes_validate.validate(item, release, strict=True)
        return
    whole = closed(
        ("apiVersion", "kind", "metadata", "spec"),
        apiVersion=TEXT,
        kind=TEXT,
        metadata=METADATA,
        spec=spec,
    )
    jsonschema.Draft202012Validator(whole).validate(item)
    for template in pod_templates(item):
        check_pod(template, release)


def pod_templates(item: dict[str, Any]) -> list[dict[str, Any]]:
    """Those of a RayCluster, the head's first."""
    if item["kind"] != "RayCluster":
        return []
    spec = item["spec"]
    return [group["template"] for group in [spec["headGroupSpec"], *spec["workerGroupSpecs"]]]


def check_pod(template: dict[str, Any], release: str) -> None:
    pod = {"apiVersion": "v1", "kind": "Pod", **template}
    kubernetes_validate.validate(pod, release, strict=True)
