"""One mesh for the whole session: starting one is what takes time."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.checkpoints.make import make_checkpoint
from tests.e2e.mesh_process import MeshProcess, mesh_config, serving


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Qwen3-MoE: 3 layers of 16 experts."""
    return make_checkpoint("qwen3_moe", tmp_path_factory.mktemp("model") / "qwen3_moe")


@pytest.fixture(scope="session")
def mesh(tiny_model: Path) -> Iterator[MeshProcess]:
    """A mesh that serves, embedded router. Tests leave it as it is."""
    with serving(mesh_config(tiny_model, "shared")) as running:
        yield running
