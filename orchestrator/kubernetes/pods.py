"""Pod templates: container, environment, volumes, probes, where they may run. Pure."""

from typing import Any

from actors.devices.snapshot import POD_LABELS_FILE, POD_RESOURCES_VARIABLE
from orchestrator.config.kubernetes import PodsConfig
from orchestrator.config.schema import MeshConfig
from orchestrator.gateway.body_window import BODY_ENVIRONMENT
from orchestrator.kubernetes.groups import Group
from orchestrator.kubernetes.mesh_config import CONFIG_FOLDER, STATE_FOLDER
from orchestrator.kubernetes.naming import (
    AGENT_PORT,
    DASHBOARD_PORT,
    GATEWAY_PORT_NAME,
    GCS_PORT,
    METRICS_PORT,
    POOL,
    Object,
    config_map,
    keys_secret,
    labels,
    mesh_ports,
    name_of,
    pods_of,
    state_claim,
)

HEAD, ENGINE, SHARD = "head", "engine", "shard"
"""Values of `app.kubernetes.io/component`."""
USER = 1000
CACHE_FOLDER = "/home/expertmesh/.cache"
CACHE_SIZE = "20Gi"
STOP_MARGIN_S = 60
"""On top of the drain: time to move the copies that a pod holds alone, and for Ray to end."""
HEAD_CPUS = 4.0

THIS_NODE = "node/$HOSTNAME/$(head -c 8 /proc/sys/kernel/random/boot_id)"
"""In bash: how the mesh calls the node that a pod is (`actors.wire.node`)."""

RAY_ENVIRONMENT = {
    "RAY_worker_niceness": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
    **BODY_ENVIRONMENT,
}
"""What `expertmesh serve` sets before it starts a Ray session of its own: here KubeRay starts Ray,
so the pods have to have it."""


def head_template(config: MeshConfig) -> Object:
    """The head node: Ray's own services, the controller, the gateway; no shards, no engines."""
    pods = config.kubernetes.pods.get(HEAD, PodsConfig())
    ports = {"gcs-server": GCS_PORT, "dashboard": DASHBOARD_PORT, "metrics": METRICS_PORT}
    # KubeRay's head Service has the ports that are named here.
    ports["directory"] = mesh_ports(config)[0]
    container = {
        "name": "ray-head",
        **_basics(config, pods),
        "ports": _ports({**ports, GATEWAY_PORT_NAME: config.gateway.port}),
        "env": [*_environment(config), *_keys(config)],
        "resources": _resources(pods.cpus or HEAD_CPUS, pods.memory, "", 0),
        "volumeMounts": [
            *_mounts(config),
            {"name": "config", "mountPath": CONFIG_FOLDER, "readOnly": True},
            {"name": "state", "mountPath": STATE_FOLDER},
        ],
    }
    state = {"claimName": state_claim(config)}
    volumes = [
        {"name": "config", "configMap": {"name": config_map(config)}},
        {"name": "state", "persistentVolumeClaim": state},
    ]
    return _template(config, pods, container, HEAD, volumes=volumes)


def worker_template(config: MeshConfig, group: Group) -> Object:
    """Pods of one pool's shards, or of engines."""
    part = ENGINE if group.name == ENGINE else SHARD
    container = {
        "name": "ray-worker",
        **_basics(config, group.pods),
        "ports": _ports({"metrics": METRICS_PORT}),
        "env": [
            *_environment(config),
            *_given_devices(group),
            _key(config, "EXPERTMESH_ADMIN_KEYS"),
        ],
        "resources": _resources(group.cpus, group.memory_bytes, group.device, group.devices),
        "volumeMounts": _mounts(config),
        "lifecycle": {"preStop": {"exec": {"command": ["bash", "-c", _leave(config)]}}},
    }
    template = _template(config, group.pods, container, part, pool=group.name, device=group.device)
    spec = template["spec"]
    spec["terminationGracePeriodSeconds"] = _drain_s(config) + STOP_MARGIN_S
    spec["topologySpreadConstraints"] = [_spread(config, group.name)]
    return template


def _template(
    config: MeshConfig,
    pods: PodsConfig,
    container: Object,
    part: str,
    *,
    pool: str = "",
    device: str = "",
    volumes: list[Object] | None = None,
) -> Object:
    settings = config.kubernetes
    spec = {
        "serviceAccountName": name_of(config),
        "automountServiceAccountToken": settings.autoscaler and part == HEAD,
        "enableServiceLinks": False,
        "securityContext": _pod_security(),
        "imagePullSecrets": [{"name": name} for name in settings.image_pull_secrets],
        "nodeSelector": dict(pods.node_selector),
        "tolerations": _tolerations(pods, device),
        "runtimeClassName": pods.runtime_class,
        "initContainers": _model_check(config, pods),
        "containers": [container],
        "volumes": [*_volumes(config), *(volumes or [])],
    }
    made = labels(config, part) | ({POOL: pool} if pool else {})
    # Empty values would only be noise in a diff.
    return {
        "metadata": {"labels": made},
        "spec": {key: value for key, value in spec.items() if value not in (None, [], {})},
    }


def _basics(config: MeshConfig, pods: PodsConfig) -> Object:
    return {
        "image": pods.image or config.kubernetes.image,
        "imagePullPolicy": "IfNotPresent",
        "securityContext": _container_security(),
        "startupProbe": _probe(period_s=5, failures=120),
        "livenessProbe": _probe(period_s=10, failures=12),
        "readinessProbe": _probe(period_s=5, failures=3),
    }


def _probe(period_s: int, failures: int) -> Object:
    """Whether the pod is a working node of the Ray cluster.

    Not whether the mesh serves: KubeRay starts the mesh once all pods are ready, and pods reach the
    head node through a Service that leaves out pods which are not.
    """
    return {
        "httpGet": {"path": "/api/healthz", "port": AGENT_PORT},
        "periodSeconds": period_s,
        "timeoutSeconds": 5,
        "failureThreshold": failures,
    }


def _leave(config: MeshConfig) -> str:
    """Before a pod ends: what it holds is moved and its requests finish, then Ray leaves."""
    url = f"http://{name_of(config)}:{config.gateway.port}{config.gateway.route_prefix}".rstrip("/")
    timeout = f"--wait --timeout {_drain_s(config)}"
    return f'expertmesh drain "{THIS_NODE}" --url {url} {timeout}; ray stop'


def _drain_s(config: MeshConfig) -> int:
    return int(config.controller.drain_timeout_s) + STOP_MARGIN_S


def _environment(config: MeshConfig) -> list[Object]:
    stop_s = str(_drain_s(config))
    values = RAY_ENVIRONMENT | {"RAY_JOB_STOP_WAIT_TIME_S": stop_s}
    return [{"name": name, "value": value} for name, value in values.items()]


def _given_devices(group: Group) -> list[Object]:
    """For who asks in the container whose devices these are."""
    return [{"name": POD_RESOURCES_VARIABLE, "value": group.device}] if group.device else []


def _keys(config: MeshConfig) -> list[Object]:
    """Of clients and administrators. Clients' keys must be there: the gateway listens to all."""
    made = [_key(config, "EXPERTMESH_API_KEYS", optional=False)]
    made += [_key(config, name) for name in ("EXPERTMESH_ADMIN_KEYS", "EXPERTMESH_SECRET")]
    if (config.batch.database or "").startswith("postgresql"):
        made.append(_key(config, "PGPASSWORD"))
    return made


def _key(config: MeshConfig, name: str, *, optional: bool = True) -> Object:
    reference = {"name": keys_secret(config), "key": name, "optional": optional}
    return {"name": name, "valueFrom": {"secretKeyRef": reference}}


def _ports(ports: dict[str, int]) -> list[Object]:
    return [
        {"name": name, "protocol": "TCP", "containerPort": port} for name, port in ports.items()
    ]


def _resources(cpus: float, memory_bytes: int, device: str, devices: int) -> Object:
    """Request and limit are equal: a shard that is throttled, or killed for memory, slows all."""
    amounts: dict[str, Any] = {"cpu": f"{cpus:g}", "memory": memory_text(memory_bytes)}
    if device:
        amounts[device] = str(devices)
    return {"requests": dict(amounts), "limits": dict(amounts)}


def memory_text(size: int) -> str:
    """A size as Kubernetes writes it."""
    for unit, factor in (("Gi", 1 << 30), ("Mi", 1 << 20), ("Ki", 1 << 10)):
        if size % factor == 0:
            return f"{size // factor}{unit}"
    return str(size)


def _pod_security() -> Object:
    return {
        "runAsNonRoot": True,
        "runAsUser": USER,
        "runAsGroup": USER,
        "fsGroup": USER,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def _container_security() -> Object:
    return {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def _volumes(config: MeshConfig) -> list[Object]:
    labels_file = {"path": POD_LABELS_FILE.name, "fieldRef": {"fieldPath": "metadata.labels"}}
    made: list[Object] = [
        {"name": "cache", "emptyDir": {"sizeLimit": CACHE_SIZE}},
        {"name": "podinfo", "downwardAPI": {"items": [labels_file]}},
    ]
    if claim := config.kubernetes.model_claim:
        source = {"claimName": claim, "readOnly": True}
        made.append({"name": "model", "persistentVolumeClaim": source})
    return made


def _mounts(config: MeshConfig) -> list[Object]:
    return [
        {"name": "cache", "mountPath": CACHE_FOLDER},
        {"name": "podinfo", "mountPath": str(POD_LABELS_FILE.parent), "readOnly": True},
        *_model_mount(config),
    ]


def _model_mount(config: MeshConfig) -> list[Object]:
    settings = config.kubernetes
    mount = {"name": "model", "mountPath": settings.model_path, "readOnly": True}
    return [mount] if settings.model_claim else []


def _model_check(config: MeshConfig, pods: PodsConfig) -> list[Object]:
    """Refuses a volume with another checkpoint, before a shard reads gigabytes of it."""
    settings = config.kubernetes
    if settings.model_claim is None or settings.model_fingerprint is None:
        return []
    command = ["expertmesh", "manifests", "fingerprint", settings.model_path]
    container = {
        "name": "check-model",
        "image": pods.image or settings.image,
        "imagePullPolicy": "IfNotPresent",
        "command": [*command, "--expect", settings.model_fingerprint],
        "securityContext": _container_security(),
        "resources": _resources(1, 1 << 30, "", 0),
        "volumeMounts": _model_mount(config),
    }
    return [container]


def _tolerations(pods: PodsConfig, device: str) -> list[Object]:
    """Nodes with devices are often tainted with the device's resource, to keep others off."""
    made: list[Object] = []
    if device:
        made.append({"key": device, "operator": "Exists", "effect": "NoSchedule"})
    for given in pods.tolerations:
        how = {"operator": "Exists"} if given.value is None else {"value": given.value}
        made.append({"key": given.key, **how, "effect": given.effect.value})
    return made


def _spread(config: MeshConfig, group: str) -> Object:
    """Pods of a group on different nodes where there are some: a lost node takes fewer of them."""
    return {
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": pods_of(config) | {POOL: group}},
    }
