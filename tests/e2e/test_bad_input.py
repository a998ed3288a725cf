"""Bad input through the real command line: one line on stderr, exit code 2, nothing started."""

import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from tests.checkpoints.make import make_checkpoint
from tests.e2e.mesh_process import mesh_config, run_cli, write_config

pytestmark = pytest.mark.e2e

TENSOR = "model.layers.1.mlp.experts.3.up_proj.weight"


def refused(folder: Path, config: dict[str, Any], **variables: str) -> str:
    """What `expertmesh serve` says of a config it refuses; the checks must not take long."""
    path = write_config(folder, config)
    done = run_cli("serve", str(path), **variables)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Start Ray" not in done.stdout
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    return line


@pytest.fixture
def tampered(
    tiny_model: Path, tmp_path: Path
) -> Callable[[Callable[[dict[str, Any]], None]], Path]:
    """A copy of the tiny model whose tensors a function has changed."""

    def copy(change: Callable[[dict[str, Any]], None]) -> Path:
        folder = Path(shutil.copytree(tiny_model, tmp_path / "tampered"))
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")
        return folder

    return copy


def test_missing_model_path(tmp_path: Path) -> None:
    line = refused(tmp_path, mesh_config(tmp_path / "nowhere", "bad"))
    assert f"model path {tmp_path}/nowhere does not exist: set model.path to a folder" in line


def test_missing_tensor(tampered: Callable[..., Path], tmp_path: Path) -> None:
    model = tampered(lambda tensors: tensors.pop(TENSOR))
    line = refused(tmp_path, mesh_config(model, "bad"))
    assert f"tensor {TENSOR} is missing from model.safetensors: fetch the checkpoint again" in line


def test_wrong_shape(tampered: Callable[..., Path], tmp_path: Path) -> None:
    def narrow(tensors: dict[str, Any]) -> None:
        tensors[TENSOR] = tensors[TENSOR][:, :16].contiguous()

    line = refused(tmp_path, mesh_config(tampered(narrow), "bad"))
    assert f"tensor {TENSOR} has shape [64, 16], expected [64, 128]" in line


def test_unknown_key_names_the_nearest(tiny_model: Path, tmp_path: Path) -> None:
    line = refused(tmp_path, mesh_config(tiny_model, "bad", router={"mod": "actor"}))
    assert "unknown key router.mod: did you mean router.mode?" in line


def test_more_experts_than_memory(tiny_model: Path, tmp_path: Path) -> None:
    config = mesh_config(tiny_model, "bad")
    for pool in config["pools"].values():
        pool["memory"] = "512KiB"
    line = refused(tmp_path, config)
    assert "16 experts of 48.0 KiB in each of 3 layers" in line
    assert "raise pools.*.memory, or add shards" in line


def test_dense_model_is_refused_by_name(tmp_path: Path) -> None:
    model = make_checkpoint("dense", tmp_path / "dense")
    line = refused(tmp_path, mesh_config(model, "bad"))
    assert "Qwen3ForCausalLM" in line


def test_port_in_use(tiny_model: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        line = refused(tmp_path, mesh_config(tiny_model, "bad", gateway={"port": port}))
    assert f"port {port} is in use by" in line
    assert "choose another with --port" in line


def test_inherited_ray_address(tiny_model: Path, tmp_path: Path) -> None:
    line = refused(tmp_path, mesh_config(tiny_model, "bad"), RAY_ADDRESS="10.0.0.1:6379")
    assert "RAY_ADDRESS=10.0.0.1:6379 is set" in line
    assert "unset RAY_ADDRESS" in line


def test_unknown_engine_flag_names_the_nearest(tiny_model: Path, tmp_path: Path) -> None:
    config = mesh_config(tiny_model, "bad", engines={"vllm": {"max_num_sequences": 4}})
    line = refused(tmp_path, config)
    assert "vLLM has no flag engines.vllm.max_num_sequences: did you mean max_num_seqs?" in line
