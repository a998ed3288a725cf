"""Who may reach whom: the gateway's Service and the mesh's NetworkPolicy. Pure."""

from urllib.parse import urlsplit

from orchestrator.config.schema import MeshConfig
from orchestrator.kubernetes.naming import (
    AGENT_PORT,
    DASHBOARD_PORT,
    GATEWAY_PORT_NAME,
    GCS_PORT,
    METRICS_PORT,
    RAY_PORTS,
    Object,
    mesh_ports,
    metadata,
    name_of,
    pods_of,
)
from orchestrator.kubernetes.pods import HEAD

NAMESPACE_NAME = "kubernetes.io/metadata.name"
"""Label that Kubernetes gives every namespace."""
DNS_PORT = 53
API_SERVER_PORTS = (443, 6443)
DEFAULT_PORTS = {"postgresql": 5432, "http": 80, "https": 443}


def network_objects(config: MeshConfig) -> list[Object]:
    return [gateway_service(config), network_policy(config)]


def gateway_service(config: MeshConfig) -> Object:
    """The OpenAI endpoint. It answers 503 with Retry-After while the mesh loads."""
    port = config.gateway.port
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(config, name_of(config)),
        "spec": {
            "type": "ClusterIP",
            "selector": pods_of(config, HEAD),
            "ports": [
                {
                    "name": GATEWAY_PORT_NAME,
                    "protocol": "TCP",
                    "port": port,
                    "targetPort": GATEWAY_PORT_NAME,
                }
            ],
        },
    }


def network_policy(config: MeshConfig) -> Object:
    """Pods of the mesh reach each other, KubeRay's operator reaches Ray, clients the gateway,
    Prometheus the metrics; nobody else anything."""
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": metadata(config, name_of(config)),
        "spec": {
            "podSelector": {"matchLabels": pods_of(config)},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": _ingress(config),
            "egress": _egress(config),
        },
    }


def _ingress(config: MeshConfig) -> list[Object]:
    settings, gateway = config.kubernetes, [config.gateway.port]
    clients: list[Object] = [{"podSelector": {}}]
    clients += [_namespace(name) for name in settings.client_namespaces]
    rules = [
        {"from": [_own_pods(config)], "ports": _inside(config)},
        {"from": clients, "ports": _tcp(gateway)},
        {
            "from": [_namespace(settings.operator_namespace)],
            "ports": _tcp([DASHBOARD_PORT, AGENT_PORT]),
        },
    ]
    if settings.monitoring_namespace is not None:
        scrapers = [_namespace(settings.monitoring_namespace)]
        rules.append({"from": scrapers, "ports": _tcp([*gateway, METRICS_PORT])})
    return rules


def _egress(config: MeshConfig) -> list[Object]:
    dns = [{"protocol": protocol, "port": DNS_PORT} for protocol in ("UDP", "TCP")]
    rules: list[Object] = [
        {"to": [_own_pods(config)], "ports": _inside(config)},
        {"to": [{"namespaceSelector": {}}], "ports": dns},
    ]
    # Where these run is not known here: only their ports are.
    if elsewhere := sorted(_services(config)):
        rules.append({"ports": _tcp(elsewhere)})
    return rules


def _services(config: MeshConfig) -> set[int]:
    """Ports outside the mesh that its processes connect to."""
    found = set(API_SERVER_PORTS) if config.kubernetes.autoscaler else set()
    if config.kubernetes.redis_address:
        found.add(int(config.kubernetes.redis_address.rpartition(":")[2]))
    for url in (config.batch.database, config.telemetry.otlp_endpoint):
        parts = urlsplit(url or "")
        if parts.hostname:
            found.add(parts.port or DEFAULT_PORTS[parts.scheme])
    if config.batch.files is not None:
        found.add(DEFAULT_PORTS["https"])
    return found


def _inside(config: MeshConfig) -> list[Object]:
    """What pods of the mesh listen on for each other."""
    ray, mesh = sorted(RAY_PORTS.values()), mesh_ports(config)
    single = [GCS_PORT, DASHBOARD_PORT, AGENT_PORT, METRICS_PORT, config.gateway.port]
    return [*_tcp(single), _range(ray[0], ray[-1]), _range(mesh[0], mesh[-1])]


def _own_pods(config: MeshConfig) -> Object:
    return {"podSelector": {"matchLabels": pods_of(config)}}


def _namespace(name: str) -> Object:
    return {"namespaceSelector": {"matchLabels": {NAMESPACE_NAME: name}}}


def _tcp(ports: list[int]) -> list[Object]:
    return [{"protocol": "TCP", "port": port} for port in ports]


def _range(first: int, last: int) -> Object:
    return {"protocol": "TCP", "port": first, "endPort": last}
