"""Model files, room for the experts, engine flags."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from actors.experts.formats.mxfp4 import MXFP4
from actors.experts.spec import Activation, ExpertSpec
from orchestrator.config.pools import PoolConfig
from orchestrator.config.schema import MeshConfig
from orchestrator.config.serving import ModelConfig
from orchestrator.preflight import model
from orchestrator.preflight.finding import Level
from orchestrator.preflight.versions import package_folder

SPEC = ExpertSpec(
    architecture="DeepseekV4ForCausalLM",
    model_path=Path("m"),
    layers=(0, 1, 2, 3),
    num_experts=64,
    top_k=6,
    hidden_size=256,
    intermediate_size=128,
    weight_format=MXFP4,
    activation=Activation(),
)
EACH = 52_224
GIB = 2**30


def pool(memory: int | None, shards: int = 1, device: str = "cpu") -> PoolConfig:
    vendor = "cpu" if device == "cpu" else "nvidia"
    return PoolConfig(vendor=vendor, device=device, shards=shards, memory=memory)


def test_model_files(tmp_path: Path) -> None:
    found = [model.check_model_files(ModelConfig(path=tmp_path / "m")).message]
    (tmp_path / "m").mkdir()
    found.append(model.check_model_files(ModelConfig(path=tmp_path / "m")).message)
    (tmp_path / "m" / "config.json").write_text("{}")
    found.append(model.check_model_files(ModelConfig(path=tmp_path / "m")).message)
    assert [message.removeprefix(f"model path {tmp_path / 'm'} ") for message in found] == [
        "does not exist",
        "has no config.json",
        "has no safetensors files",
    ]
    (tmp_path / "m" / "model.safetensors").write_bytes(b"x" * 2048)
    finding = model.check_model_files(ModelConfig(path=tmp_path / "m"))
    assert (finding.ok, finding.message) == (True, f"m: 2.0 KiB in {tmp_path / 'm'}")


def test_experts_that_just_fit() -> None:
    pools = {"a": pool(4 * 26 * EACH), "b": pool(4 * 19 * EACH + 5, shards=2)}
    assert model.check_expert_memory(pools, SPEC, 0).ok


def test_one_byte_short() -> None:
    pools = {"a": pool(4 * 26 * EACH), "b": pool(4 * 19 * EACH - 1, shards=2)}
    finding = model.check_expert_memory(pools, SPEC, 100 * GIB)
    assert not finding.ok
    assert finding.message == (
        "the model has 64 experts of 51.0 KiB in each of 4 layers (12.8 MiB), "
        "but the pools' shards hold 62 a layer"
    )
    assert finding.fix == "raise pools.*.memory, or add shards: 1 more in pools.a would do"


def test_one_shard_holds_an_expert_once() -> None:
    assert not model.check_expert_memory({"a": pool(0), "b": pool(0)}, SPEC, GIB).ok
    assert "hold 64 a layer" in model.check_expert_memory({"a": pool(GIB)}, SPEC, 0).message


def test_shards_on_cpus_without_a_limit_share_the_host() -> None:
    pools = {"a": pool(None, shards=2), "b": pool(4 * 14 * EACH)}
    assert model.check_expert_memory(pools, SPEC, 4 * 50 * EACH).ok
    assert not model.check_expert_memory(pools, SPEC, 4 * 50 * EACH - 1).ok


def test_devices_without_a_limit_are_measured_later() -> None:
    pools = {"a": pool(None, device="cuda"), "b": pool(EACH)}
    assert "measure" in model.check_expert_memory(pools, SPEC, 0).message


def test_host_memory_counts_only_a_private_session() -> None:
    config = MeshConfig.model_validate(
        {"model": {"path": "m"}, "pools": {"a": {"vendor": "cpu"}}, "engines": {"kv_cache_gib": 8}}
    )
    assert model.check_host_memory(config, SPEC, 8 * GIB).level is Level.WARNING
    assert model.check_host_memory(config, SPEC, 16 * GIB).level is Level.OK
    joined = config.model_copy(
        update={"cluster": config.cluster.model_copy(update={"ray_address": "auto"})}
    )
    assert model.check_host_memory(joined, SPEC, 8 * GIB).level is Level.OK


def test_engine_flags_are_read_from_source(tmp_path: Path) -> None:
    (tmp_path / "engine").mkdir()
    (tmp_path / "engine" / "arg_utils.py").write_text(
        "class EngineArgs:\n    max_num_seqs: int = 1\n    other = 2\n"
        "class AsyncEngineArgs(EngineArgs):\n    enable_log_requests: bool = False\n"
        "class Unrelated:\n    third: int = 0\n"
    )
    application = tmp_path / "entrypoints" / "launchers" / "cli_args.py"
    application.parent.mkdir(parents=True)
    application.write_text("class BaseFrontendArgs:\n    chat_template: str | None = None\n")
    known = model.known_engine_flags(tmp_path)
    assert known == {"max_num_seqs", "enable_log_requests", "chat_template"}


def test_flags_of_the_installed_vllm_are_found() -> None:
    folder = package_folder("vllm")
    assert folder is not None
    known = model.known_engine_flags(folder)
    assert {"max_num_seqs", "block_size", "enforce_eager", "lora_modules"} <= known


def adapter(folder: Path, module: str) -> str:
    """A tiny adapter of one module of layer 0, as `name=folder`."""
    folder.mkdir()
    matrix = torch.zeros(2, 2)
    stem = f"base_model.model.model.layers.0.{module}"
    tensors = {f"{stem}.lora_A.weight": matrix, f"{stem}.lora_B.weight": matrix.clone()}
    save_file(tensors, folder / "adapter_model.safetensors")
    return f"{folder.name}={folder}"


def test_adapters_of_what_stays_in_the_engine(tmp_path: Path) -> None:
    modules = [
        adapter(tmp_path / "a", "self_attn.q_proj"),
        adapter(tmp_path / "b", "mlp.shared_experts.up_proj"),
    ]
    assert [finding.ok for finding in model.check_adapters(modules)] == [True, True]
    assert list(model.check_adapters(None)) == []


def test_an_adapter_of_routed_experts_is_refused_by_name(tmp_path: Path) -> None:
    (finding,) = model.check_adapters([adapter(tmp_path / "a", "mlp.experts.3.gate_proj")])
    assert not finding.ok
    assert finding.message.replace(str(tmp_path), "DIR") == (
        "engines.vllm.lora_modules: adapter DIR/a is for routed experts too (base_model.model.model"
        ".layers.0.mlp.experts.3.gate_proj.lora_A.weight), which shards hold without adapters: "
        "train one for attention and shared experts"
    )


def test_an_adapter_that_is_not_there(tmp_path: Path) -> None:
    (finding,) = model.check_adapters([f"a={tmp_path}/nowhere"])
    assert "nowhere has no safetensors files" in finding.message


@pytest.mark.parametrize(
    ("flags", "fix"),
    [
        ([], ""),
        (["max_num_seqs"], ""),
        (["max_num_seq"], "did you mean max_num_seqs?"),
        (["zzz"], "see `vllm serve --help`"),
    ],
)
def test_engine_flags(flags: list[str], fix: str) -> None:
    finding = model.check_engine_flags(flags, {"max_num_seqs", "block_size"})
    assert finding.fix == fix
    assert finding.ok is not bool(fix)
