"""Pools whose shards load a checkpoint of their own: what is planned for them, what is refused."""

import json
from pathlib import Path

import pytest

from actors.experts.families import read_expert_spec
from orchestrator.cli.plan import capacities_of
from orchestrator.config.schema import MeshConfig
from orchestrator.errors import UserError
from orchestrator.pool_specs import specs_of_pools
from orchestrator.preflight.checks import check_config
from orchestrator.preflight.finding import Level
from orchestrator.preflight.model import check_expert_memory
from tests.checkpoints.make import make_checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`base` in MXFP4 and `fp8`, which is the same model."""
    folder = tmp_path_factory.mktemp("models")
    make_checkpoint("deepseek_v4_mxfp4", folder / "base")
    make_checkpoint("deepseek_v4_fp8", folder / "fp8")
    make_checkpoint("qwen3_moe", folder / "other")
    return folder


def config(folder: Path, checkpoint: str, memory: str = "100MiB") -> MeshConfig:
    pool = {"vendor": "cpu", "memory": memory, "speed": 1.0}
    variant = {"checkpoint": folder / checkpoint, "checkpoint_tolerance": 0.1}
    return MeshConfig.model_validate(
        {"model": {"path": folder / "base"}, "pools": {"a": pool, "b": pool | variant}}
    )


def test_a_pool_is_planned_with_the_bytes_of_its_own_format(folder: Path) -> None:
    mesh = config(folder, "fp8")
    base = read_expert_spec(mesh.model.path)
    variant = specs_of_pools(mesh.pools, base)["b"]
    assert variant.bytes_per_expert > 1.5 * base.bytes_per_expert
    capacities, _ = capacities_of(mesh, base)
    each = [capacity.bytes_per_expert for capacity in capacities]
    assert each == [base.bytes_per_expert, variant.bytes_per_expert]


def test_memory_counts_experts_of_each_format(folder: Path) -> None:
    """Enough for all experts in both pools together, if only both had the base's format."""
    base = read_expert_spec(folder / "base")
    half = base.bytes_per_expert * len(base.layers) * base.num_experts // 2
    mesh = config(folder, "fp8", str(half))
    each = {name: spec.bytes_per_expert for name, spec in specs_of_pools(mesh.pools, base).items()}
    assert check_expert_memory(mesh.pools, base, 0).ok
    assert not check_expert_memory(mesh.pools, base, 0, each).ok


def test_another_model_is_refused_before_anything_starts(folder: Path) -> None:
    mesh = config(folder, "other")
    with pytest.raises(UserError, match=r"pools.b.checkpoint: .* its architecture is Qwen3Moe"):
        specs_of_pools(mesh.pools, read_expert_spec(mesh.model.path))
    found = [one for one in check_config(mesh) if one.level is Level.FAILURE]
    assert any(one.message.startswith("pools.b.checkpoint: ") for one in found)


def test_a_checkpoint_that_is_not_there_is_refused(folder: Path) -> None:
    mesh = config(folder, "nowhere")
    with pytest.raises(UserError, match=r"pools.b.checkpoint: .*nowhere has no config.json"):
        specs_of_pools(mesh.pools, read_expert_spec(mesh.model.path))


def test_a_checkpoint_that_is_not_whole_is_refused(folder: Path, tmp_path: Path) -> None:
    index = json.loads((folder / "fp8" / "config.json").read_text())
    index["num_hidden_layers"] = 3
    part = tmp_path / "part"
    part.mkdir()
    (part / "config.json").write_text(json.dumps(index))
    for file in (folder / "fp8").glob("*.safetensors*"):
        (part / file.name).symlink_to(file)
    mesh = config(part.parent, "part").model_copy(update={"model": config(folder, "fp8").model})
    with pytest.raises(UserError, match=r"its layers is \(0, 1, 2\), not \(0, 1, 2, 3\)"):
        specs_of_pools(mesh.pools, read_expert_spec(mesh.model.path))
