"""A cluster for the tests of commands."""

import pytest

from orchestrator.kubernetes import api as api_module
from orchestrator.kubernetes import waiting
from tests.k8s.api_server import Server, api_server
from tests.k8s.api_store import Store
from tests.k8s.desk import Desk
from tests.k8s.kuberay import Operator


@pytest.fixture
def desk(tmp_path, capsys, monkeypatch):
    for name in ("EXPERTMESH_URL", "EXPERTMESH_API_KEYS", "EXPERTMESH_ADMIN_KEYS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(waiting, "POLL_S", 0.02)
    monkeypatch.setattr(api_module, "RETRY_PAUSE_S", 0.02)
    operator = Operator()
    with api_server(Server(Store(react=operator))) as server:
        yield Desk(server, operator, tmp_path, capsys)
