"""Ports and Ray addresses, on real sockets of this machine."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from orchestrator.config.schema import ClusterConfig
from orchestrator.config.serving import GatewayConfig
from orchestrator.preflight import network, ray_access
from orchestrator.preflight.finding import Level
from orchestrator.preflight.network import check_exposure, check_port, check_ray


@pytest.fixture(autouse=True)
def _short_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Listeners of these tests accept, and then say nothing."""
    monkeypatch.setattr(ray_access, "ASK_TIMEOUT_S", 0.1)


@pytest.fixture
def listening_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


def test_free_port(closed_port: int) -> None:
    finding = check_port(GatewayConfig(port=closed_port))
    assert (finding.ok, finding.message) == (True, f"127.0.0.1:{closed_port} is free")
    assert check_port(GatewayConfig(port=0)).ok


def test_port_in_use_names_who_uses_it(listening_port: int) -> None:
    finding = check_port(GatewayConfig(port=listening_port))
    assert not finding.ok
    assert finding.message.startswith(f"port {listening_port} is in use by ")
    assert f"(pid {os.getpid()})" in finding.message
    assert "--port" in finding.fix


def test_a_port_in_use_does_not_stop_a_mesh_in_a_shared_cluster(listening_port: int) -> None:
    finding = check_port(GatewayConfig(port=listening_port), shared=True)
    assert finding.level is Level.WARNING
    assert f"127.0.0.1:{listening_port} is in use on this machine by " in finding.message


def test_the_port_of_the_clusters_own_serve_is_joined(
    listening_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network, "SERVE_PROXY", psutil.Process().name())
    finding = check_port(GatewayConfig(port=listening_port), shared=True)
    assert (finding.level, "Ray Serve listens on" in finding.message) == (Level.OK, True)


def test_address_of_another_machine(closed_port: int) -> None:
    finding = check_port(GatewayConfig(host="192.0.2.1", port=closed_port))
    assert not finding.ok
    assert finding.message.startswith(f"192.0.2.1:{closed_port}: ")


@pytest.mark.parametrize(
    ("host", "has_keys", "level"),
    [
        ("127.0.0.1", False, Level.OK),
        ("localhost", False, Level.OK),
        ("::1", False, Level.OK),
        ("0.0.0.0", True, Level.OK),
        ("0.0.0.0", False, Level.WARNING),
    ],
)
def test_exposure(host: str, has_keys: bool, level: Level) -> None:
    assert check_exposure(GatewayConfig(host=host), has_keys).level is level


def test_private_session_is_not_led_elsewhere() -> None:
    assert check_ray(ClusterConfig(), {}).ok
    finding = check_ray(ClusterConfig(), {"RAY_ADDRESS": "10.0.0.1:6379"})
    assert not finding.ok
    assert "RAY_ADDRESS=10.0.0.1:6379" in finding.message
    assert "unset RAY_ADDRESS" in finding.fix


def test_named_cluster_must_answer(listening_port: int, closed_port: int) -> None:
    assert check_ray(ClusterConfig(ray_address=f"127.0.0.1:{listening_port}"), {}).ok
    finding = check_ray(ClusterConfig(ray_address=f"127.0.0.1:{closed_port}"), {})
    assert (finding.ok, finding.message) == (
        False,
        f"no Ray cluster answers at 127.0.0.1:{closed_port}",
    )


@pytest.mark.parametrize("address", ["ray://head:10001", "head", "head:port", ":6379"])
def test_malformed_address(address: str) -> None:
    assert "is not host:port" in check_ray(ClusterConfig(ray_address=address), {}).message


def test_auto_takes_the_environment_then_the_record(tmp_path: Path, listening_port: int) -> None:
    auto, address = ClusterConfig(ray_address="auto"), f"127.0.0.1:{listening_port}"
    assert check_ray(auto, {"RAY_ADDRESS": address}).ok
    finding = check_ray(auto, {"RAY_TMPDIR": str(tmp_path)})
    assert "no Ray cluster runs" in finding.message
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text(f"{address}\n")
    assert check_ray(auto, {"RAY_TMPDIR": str(tmp_path)}).ok
