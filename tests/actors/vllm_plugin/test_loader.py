"""The loader leaves routed experts, and nothing else, to the mesh."""

from pathlib import Path

import pytest
from safetensors import safe_open

from tests.checkpoints.make import make_checkpoint


@pytest.mark.parametrize(
    ("name", "routed"),
    [
        ("model.layers.3.mlp.experts.17.gate_proj.weight", True),
        ("model.layers.0.block_sparse_moe.experts.5.w1.weight", True),
        ("layers.2.ffn.experts.63.w3.scale", True),
        ("model.layers.1.mlp.experts.gate_up_proj_blocks", True),
        ("model.layers.3.mlp.shared_experts.gate_proj.weight", False),
        ("layers.2.ffn.shared_experts.w2.scale", False),
        ("layers.2.ffn.gate.tid2eid", False),
        ("model.layers.3.mlp.gate.weight", False),
        ("model.embed_tokens.weight", False),
    ],
)
def test_names(name: str, routed: bool) -> None:
    pytest.importorskip("vllm", reason="the plugin's loader is a class of vLLM's")
    from actors.vllm_plugin.loader import is_routed_expert

    assert is_routed_expert(name) is routed


@pytest.mark.parametrize("kind", ["qwen3_moe", "deepseek_v4_mxfp4"])
def test_reads_everything_but_routed_experts(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("vllm", reason="the plugin's loader is a class of vLLM's")
    from vllm.config.load import LoadConfig

    from actors.vllm_plugin.loader import ExpertlessLoader, is_routed_expert

    model = make_checkpoint(kind, tmp_path / kind)
    files = sorted(map(str, model.glob("*.safetensors")))
    everything = set()
    for file in files:
        with safe_open(file, framework="pt") as checkpoint:
            everything |= set(checkpoint.keys())
    read = dict(ExpertlessLoader(LoadConfig())._read(files, "p."))
    assert set(read) == {f"p.{name}" for name in everything if not is_routed_expert(name)}
    assert any(map(is_routed_expert, everything))
