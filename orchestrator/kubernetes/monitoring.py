"""Metrics for Prometheus' operator, alerts, and Grafana's dashboards in ConfigMaps.

The rules and dashboards are those of `dashboards/`, as they are.
"""

from pathlib import Path

import yaml

from orchestrator.config.schema import MeshConfig
from orchestrator.kubernetes.naming import (
    GATEWAY_PORT_NAME,
    Object,
    keys_secret,
    labels,
    metadata,
    name_of,
    pods_of,
)
from orchestrator.kubernetes.pods import HEAD

_ORCHESTRATOR = Path(__file__).resolve().parents[1]
API_VERSION = "monitoring.coreos.com/v1"
METRICS_KEY = "EXPERTMESH_METRICS_KEY"
"""In the keys' Secret: one of the API keys, for Prometheus."""
DASHBOARD_LABEL = {"grafana_dashboard": "1"}
"""What the sidecar of Grafana's chart looks for."""


def dashboards_folder() -> Path:
    """In a checkout, or in `orchestrator/dashboards` once installed."""
    checkout = _ORCHESTRATOR.parent / "dashboards"
    return checkout if (checkout / "grafana").is_dir() else _ORCHESTRATOR / "dashboards"


def is_copy(item: Object) -> bool:
    """Whether it is a file of `dashboards/` in another form."""
    return item["kind"] == "PrometheusRule" or (
        DASHBOARD_LABEL.items() <= item["metadata"]["labels"].items()
    )


def monitoring_objects(config: MeshConfig) -> list[Object]:
    if config.kubernetes.monitoring_namespace is None:
        return []
    files = sorted((dashboards_folder() / "grafana").glob("*.json"))
    return [
        pod_monitor(config),
        ray_monitor(config),
        prometheus_rule(config),
        *(dashboard(config, file) for file in files),
    ]


def pod_monitor(config: MeshConfig) -> Object:
    """The mesh's own metrics, from its gateway."""
    key = {"name": keys_secret(config), "key": METRICS_KEY}
    endpoint = {
        "port": GATEWAY_PORT_NAME,
        "path": f"{config.gateway.route_prefix.rstrip('/')}/metrics",
        "interval": "15s",
        "authorization": {"type": "Bearer", "credentials": key},
    }
    return _monitor(config, name_of(config), pods_of(config, HEAD), endpoint)


def ray_monitor(config: MeshConfig) -> Object:
    """Ray's metrics, from every pod."""
    endpoint = {"port": "metrics", "interval": "30s"}
    return _monitor(config, f"{name_of(config)}-ray", pods_of(config), endpoint)


def _monitor(config: MeshConfig, name: str, selector: dict[str, str], endpoint: Object) -> Object:
    return {
        "apiVersion": API_VERSION,
        "kind": "PodMonitor",
        "metadata": metadata(config, name),
        "spec": {
            "selector": {"matchLabels": selector},
            "podMetricsEndpoints": [endpoint],
        },
    }


def prometheus_rule(config: MeshConfig) -> Object:
    rules = (dashboards_folder() / "prometheus" / "rules.yml").read_text(encoding="utf-8")
    return {
        "apiVersion": API_VERSION,
        "kind": "PrometheusRule",
        "metadata": metadata(config, name_of(config)),
        "spec": {"groups": yaml.safe_load(rules)["groups"]},
    }


def dashboard(config: MeshConfig, file: Path) -> Object:
    name = f"{name_of(config)}-{file.stem.removeprefix('expertmesh-')}-dashboard"
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata(config, name) | {"labels": labels(config) | DASHBOARD_LABEL},
        "data": {file.name: file.read_text(encoding="utf-8")},
    }
