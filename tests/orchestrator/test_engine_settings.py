"""What engines of a mesh are started with."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from actors.experts.formats.bf16 import BF16
from actors.experts.spec import Activation, ExpertSpec
from actors.wire.address import Address
from orchestrator.config.schema import MeshConfig
from orchestrator.engine_settings import (
    EXECUTOR_FLAG,
    ONE_PROCESS_EXECUTOR,
    PATIENT_LOAD_BYTES,
    engine_config,
    loads_beside_shards,
)
from orchestrator.run_dir import RunDir

DIRECTORY = Address("/tmp/xmesh-1/s/directory")


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path)


def settings(run_dir: RunDir, **sections: Any):
    pools = {"a": {"vendor": "cpu"}}
    config = MeshConfig.model_validate({"model": {"path": "/m"}, "pools": pools, **sections})
    return engine_config(config, "engine-0", DIRECTORY, b"secret", run_dir)


def test_flags_are_the_configs(run_dir: RunDir) -> None:
    made = settings(
        run_dir,
        model={"path": "/m", "served_name": "tiny", "max_model_len": 512},
        engines={"kv_cache_gib": 2, "vllm": {"max-num-seqs": 4}},
    )
    assert (made.engine_id, made.model, made.served_model_name) == ("engine-0", "/m", "tiny")
    assert made.flags["max_num_seqs"] == 4
    assert made.flags["max_model_len"] == 512
    assert made.cpu_kv_cache_gib == 2


@pytest.mark.parametrize(
    ("vllm", "executor"),
    [
        ({}, ONE_PROCESS_EXECUTOR),
        ({"tensor_parallel_size": 1}, ONE_PROCESS_EXECUTOR),
        ({"tensor_parallel_size": 2}, None),
        ({"pipeline_parallel_size": 2}, None),
        ({EXECUTOR_FLAG: "mp"}, "mp"),
    ],
)
def test_one_device_needs_one_process(
    run_dir: RunDir, vllm: dict[str, Any], executor: str | None
) -> None:
    assert settings(run_dir, engines={"vllm": vllm}).flags.get(EXECUTOR_FLAG) == executor


def test_a_private_engine_writes_into_the_run_folder_and_needs_no_secret(run_dir: RunDir) -> None:
    environment = settings(run_dir).environment
    assert environment["EXPERTMESH_ADDRESS"] == "unix:/tmp/xmesh-1/s/directory"
    assert environment["VLLM_RPC_BASE_PATH"] == str(run_dir.path)
    assert environment["TMPDIR"].startswith(str(run_dir.path))
    assert "EXPERTMESH_SECRET" not in environment


def test_an_engine_of_a_shared_cluster_may_be_on_another_machine(run_dir: RunDir) -> None:
    environment = settings(run_dir, cluster={"ray_address": "head:6379"}).environment
    assert environment["EXPERTMESH_SECRET"] == "secret"
    assert not any(str(run_dir.path) in value for value in environment.values())


def test_large_models_load_their_experts_first() -> None:
    spec = ExpertSpec(
        "Moe", Path("/m"), (0,), 8, 2, 64, 32, BF16, Activation()
    )  # fmt: skip
    assert loads_beside_shards(spec)
    needed = PATIENT_LOAD_BYTES // (spec.num_experts * spec.bytes_per_expert) + 1
    assert not loads_beside_shards(replace(spec, layers=tuple(range(needed))))
