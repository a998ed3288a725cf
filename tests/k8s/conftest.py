"""A cluster for the tests of commands: one of the tests' own, and a real API server if one is had.

EXPERTMESH_TEST_KUBECONFIG names a kubeconfig of somebody who may do everything, on a cluster with
KubeRay's CRDs. Or EXPERTMESH_TEST_CONTROL_PLANE names a folder with etcd, kube-apiserver and
kube-controller-manager, which are started, and EXPERTMESH_TEST_KUBERAY_CRDS one with the CRDs.
"""

import os
import uuid
from dataclasses import replace
from pathlib import Path

import pytest
from kubernetes import client
from kubernetes.config import new_client_from_config

from orchestrator.cli import kubernetes as cli
from orchestrator.cli.manifests import objects_of
from orchestrator.kubernetes import api as api_module
from orchestrator.kubernetes import waiting
from orchestrator.kubernetes.kinds import KINDS
from tests.k8s.api_server import Server, api_server
from tests.k8s.api_store import Store
from tests.k8s.control_plane import control_plane, install_crds
from tests.k8s.desk import Desk
from tests.k8s.kuberay import Operator
from tests.k8s.real_cluster import RealCluster, for_server

KUBECONFIG = os.environ.get("EXPERTMESH_TEST_KUBECONFIG", "")
BINARIES = os.environ.get("EXPERTMESH_TEST_CONTROL_PLANE", "")
CRDS = os.environ.get("EXPERTMESH_TEST_KUBERAY_CRDS", "")
NO_CLUSTER = (
    "EXPERTMESH_TEST_KUBECONFIG: a cluster with KubeRay's CRDs, or EXPERTMESH_TEST_CONTROL_PLANE "
    "and EXPERTMESH_TEST_KUBERAY_CRDS: programs and CRDs to make one (docs/kubernetes.md)"
)


@pytest.fixture
def desk(tmp_path, capsys, monkeypatch):
    _no_endpoint(monkeypatch)
    monkeypatch.setattr(waiting, "POLL_S", 0.02)
    monkeypatch.setattr(api_module, "RETRY_PAUSE_S", 0.02)
    operator = Operator()
    with api_server(Server(Store(react=operator))) as server:
        yield Desk(server, operator, tmp_path, capsys)


@pytest.fixture(scope="session")
def real_server(tmp_path_factory):
    """Kubeconfig of a real API server's administrator."""
    if KUBECONFIG:
        yield Path(KUBECONFIG)
    elif BINARIES and CRDS:
        folder = tmp_path_factory.mktemp("control-plane")
        with control_plane(Path(BINARIES), folder) as started:
            install_crds(started.kubeconfig, Path(CRDS))
            yield started.kubeconfig
    else:
        pytest.skip(NO_CLUSTER)


@pytest.fixture
def real(real_server, tmp_path, capsys, monkeypatch):
    """Somebody at a terminal, with a namespace of their own on a real API server."""
    _no_endpoint(monkeypatch)
    monkeypatch.setattr(waiting, "POLL_S", 0.1)
    name = f"expertmesh-test-{uuid.uuid4().hex[:8]}"
    core = client.CoreV1Api(new_client_from_config(str(real_server)))
    core.create_namespace({"metadata": {"name": name}})
    try:
        cluster = RealCluster(real_server, name, tmp_path, capsys)
        if cluster.minor < 22:
            _make_do(monkeypatch, cluster.minor)
        yield cluster
    finally:
        core.delete_namespace(name)


def _make_do(monkeypatch, minor):
    """Have the commands render what so old a server can have."""
    monkeypatch.setattr(cli, "objects_of", lambda config: for_server(objects_of(config), minor))
    if minor < 21:
        budgets = replace(KINDS["PodDisruptionBudget"], version="v1beta1")
        monkeypatch.setitem(KINDS, "PodDisruptionBudget", budgets)


def _no_endpoint(monkeypatch):
    for name in ("EXPERTMESH_URL", "EXPERTMESH_API_KEYS", "EXPERTMESH_ADMIN_KEYS"):
        monkeypatch.delenv(name, raising=False)
