"""Whether the endpoint's port is free, and whether Ray is, or is not, where the config wants it."""

import ipaddress
import os
import socket
import tempfile
from collections.abc import Mapping
from pathlib import Path

import psutil

from orchestrator.config.schema import ClusterConfig
from orchestrator.config.serving import GatewayConfig
from orchestrator.preflight import ray_access
from orchestrator.preflight.finding import Finding, Level

CONNECT_TIMEOUT_S = 2.0
SERVE_PROXY = "ray::ProxyActor"
"""Process name of Ray Serve's HTTP server."""


def check_port(gateway: GatewayConfig, *, shared: bool = False) -> Finding:
    """Bind the port once, the way the gateway will.

    shared: the mesh joins a Ray cluster. Then the port may be Ray Serve's already, for other
    applications, or on another machine, so that one in use need not stop a mesh.
    """
    name, where = "endpoint", f"{gateway.host}:{gateway.port}"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            gateway.host, gateway.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen(1)
    except socket.gaierror:
        message = f"host {gateway.host} is unknown"
        return Finding(name, Level.FAILURE, message, "set gateway.host to an address of this host")
    except PermissionError:
        message = f"port {gateway.port} needs privileges"
        return Finding(name, Level.FAILURE, message, "choose one from 1024 up with --port")
    except OSError as error:
        user = _listener(gateway.port)
        if shared and user:
            return _port_in_shared_cluster(where, user)
        message = f"port {gateway.port} is in use{user}" if user else f"{where}: {error.strerror}"
        return Finding(name, Level.FAILURE, message, "stop that, or choose another with --port")
    return Finding(name, Level.OK, f"{where} is free" if gateway.port else "takes a free port")


def _port_in_shared_cluster(where: str, user: str) -> Finding:
    if SERVE_PROXY in user:
        return Finding("endpoint", Level.OK, f"Ray Serve listens on {where}; the gateway joins it")
    message = f"{where} is in use on this machine{user}"
    return Finding(
        "endpoint",
        Level.WARNING,
        message,
        "choose another with --port if this is the machine the cluster's endpoint will be on",
    )


def _listener(port: int) -> str:
    """ " by NAME (pid N)" of the process that listens on `port`, as far as this user may see."""
    try:
        connections = psutil.net_connections(kind="tcp")
    except psutil.Error:
        return " by another process"
    for connection in connections:
        if connection.status != psutil.CONN_LISTEN or not connection.laddr:
            continue
        if connection.laddr.port != port:
            continue
        if connection.pid is None:
            return " by a process of another user"
        try:
            return f" by {psutil.Process(connection.pid).name()} (pid {connection.pid})"
        except psutil.Error:
            return f" by pid {connection.pid}"
    return ""


def check_exposure(gateway: GatewayConfig, has_api_keys: bool) -> Finding:
    """An endpoint the network can reach should ask for a key."""
    name = "access"
    try:
        loopback = ipaddress.ip_address(gateway.host).is_loopback
    except ValueError:
        loopback = gateway.host == "localhost"
    if loopback or has_api_keys:
        return Finding(name, Level.OK, "local only" if loopback else "API keys are set")
    return Finding(
        name,
        Level.WARNING,
        f"{gateway.host} is open to the network and no API key is asked for",
        "set EXPERTMESH_API_KEYS",
    )


def check_ray(cluster: ClusterConfig, environment: Mapping[str, str] = os.environ) -> Finding:
    """A private session must not be led elsewhere by RAY_ADDRESS; a named one must answer."""
    name, inherited = "ray session", environment.get("RAY_ADDRESS", "")
    if cluster.ray_address is None:
        if not inherited:
            return Finding(name, Level.OK, "a private session will be started")
        return Finding(
            name,
            Level.FAILURE,
            f"RAY_ADDRESS={inherited} is set, but the config asks for a private Ray session",
            "unset RAY_ADDRESS, or set cluster.ray_address: auto to join that cluster",
        )
    address = cluster.ray_address
    if address == "auto":
        address = inherited or _recorded_address(environment)
        if not address:
            return Finding(
                name,
                Level.FAILURE,
                "cluster.ray_address is auto, but no Ray cluster runs on this machine",
                "start one with `ray start --head`, name its address, or leave ray_address out",
            )
    return _check_answers(address)


def _recorded_address(environment: Mapping[str, str]) -> str:
    """The address `ray start` leaves behind for `auto`."""
    root = Path(environment.get("RAY_TMPDIR") or tempfile.gettempdir())
    record = root / "ray" / "ray_current_cluster"
    return record.read_text().strip() if record.is_file() else ""


def _check_answers(address: str) -> Finding:
    name = "ray session"
    host, _, port = address.rpartition(":")
    if "://" in address or not host or not port.isdigit():
        message = f"Ray address {address} is not host:port"
        return Finding(
            name, Level.FAILURE, message, "give the head's address, such as 10.0.0.1:6379"
        )
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_TIMEOUT_S).close()
    except (OSError, OverflowError):
        return Finding(
            name,
            Level.FAILURE,
            f"no Ray cluster answers at {address}",
            "start it, or correct cluster.ray_address",
        )
    if refused := ray_access.why_refused(address):
        return Finding(name, Level.FAILURE, refused, ray_access.FIX)
    return Finding(name, Level.OK, f"a cluster answers at {address}")
