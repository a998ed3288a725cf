"""What protects a mesh's TCP connections, by its config."""

import pickle
from pathlib import Path

import pytest

from actors.wire.security import HANDSHAKE_ONLY, Protection, TcpSecurity
from orchestrator.config.schema import MeshConfig
from orchestrator.runtime.mesh import tcp_security


def security_of(folder: Path, **sections: dict[str, object]) -> TcpSecurity:
    config = MeshConfig.model_validate(
        {"model": {"path": folder}, "pools": {"a": {"vendor": "cpu"}}, **sections}
    )
    return tcp_security(config)


def test_a_mesh_on_one_machine_pays_for_no_protection(tmp_path: Path) -> None:
    assert security_of(tmp_path) == HANDSHAKE_ONLY
    router = {"between_nodes_security": "encrypted"}
    assert security_of(tmp_path, router=router) == HANDSHAKE_ONLY


@pytest.mark.parametrize("level", list(Protection))
def test_a_mesh_in_a_cluster_has_what_its_config_says(tmp_path: Path, level: Protection) -> None:
    cluster = {"ray_address": "127.0.0.1:1"}
    assert security_of(tmp_path, cluster=cluster).protection is Protection.AUTHENTICATED
    router = {"between_nodes_security": level.value}
    found = security_of(tmp_path, cluster=cluster, router=router)
    assert found == TcpSecurity(level)
    assert pickle.loads(pickle.dumps(found)) == found, "it travels in actors' configs"


def test_certificates_are_handed_on(tmp_path: Path) -> None:
    router = {
        "between_nodes_security": "encrypted",
        "tls_certificate": tmp_path / "certificate.pem",
        "tls_key": tmp_path / "key.pem",
    }
    found = security_of(tmp_path, cluster={"ray_address": "127.0.0.1:1"}, router=router)
    assert found == TcpSecurity(
        Protection.ENCRYPTED, tmp_path / "certificate.pem", tmp_path / "key.pem"
    )
