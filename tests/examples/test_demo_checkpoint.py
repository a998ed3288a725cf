"""The demo checkpoint is complete, in DeepSeek-V4's released layout, and small."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import AutoTokenizer, PreTrainedTokenizerBase

DEMO = Path(__file__).parents[2] / "examples" / "demo"
CHECKPOINT = DEMO / "checkpoint"
WEIGHTS = CHECKPOINT / "model.safetensors"
MAX_DEMO_BYTES = 25_000_000
FP4_BLOCK = 32
FP8_BLOCK = 128


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    return json.loads((CHECKPOINT / "config.json").read_text())


@pytest.fixture(scope="module")
def header() -> dict[str, dict[str, Any]]:
    """``{tensor name: {"dtype", "shape", ...}}`` as the file itself says."""
    with WEIGHTS.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        entries = json.loads(file.read(length))
    entries.pop("__metadata__", None)
    return entries


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(CHECKPOINT)


@pytest.fixture(scope="module")
def prompts() -> list[dict[str, str]]:
    lines = (DEMO / "prompts.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def dtype_and_shape(header: dict[str, dict[str, Any]], name: str) -> tuple[str, list[int]]:
    assert name in header, f"{name} is missing from {WEIGHTS.name}"
    return header[name]["dtype"], header[name]["shape"]


def test_the_whole_demo_is_small() -> None:
    total = sum(path.stat().st_size for path in CHECKPOINT.iterdir())
    assert total <= MAX_DEMO_BYTES


@pytest.mark.parametrize(
    "name",
    [
        "LICENSE",
        "NOTICE",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ],
)
def test_file_is_there(name: str) -> None:
    assert (CHECKPOINT / name).stat().st_size > 0


def test_config_exercises_every_v4_feature(config: dict[str, Any]) -> None:
    assert config["architectures"] == ["DeepseekV4ForCausalLM"]
    assert config["model_type"] == "deepseek_v4"
    assert config["scoring_func"] == "sqrtsoftplus"
    assert config["topk_method"] == "noaux_tc"
    assert 0 < config["num_hash_layers"] < config["num_hidden_layers"]
    assert {0, 4, 128} <= set(config["compress_ratios"][: config["num_hidden_layers"]])
    assert config["hc_mult"] > 1
    assert config["expert_dtype"] == "fp4"
    assert config["quantization_config"]["quant_method"] == "fp8"
    assert config["quantization_config"]["weight_block_size"] == [FP8_BLOCK, FP8_BLOCK]
    assert config["quantization_config"]["scale_fmt"] == "ue8m0"


def test_every_expert_of_every_layer_is_mxfp4(
    config: dict[str, Any], header: dict[str, dict[str, Any]]
) -> None:
    hidden, inter = config["hidden_size"], config["moe_intermediate_size"]
    shapes = {"w1": (inter, hidden), "w2": (hidden, inter), "w3": (inter, hidden)}
    expected = set()
    for layer in range(config["num_hidden_layers"]):
        for expert in range(config["n_routed_experts"]):
            for matrix, (rows, columns) in shapes.items():
                name = f"layers.{layer}.ffn.experts.{expert}.{matrix}"
                weight, scale = f"{name}.weight", f"{name}.scale"
                assert dtype_and_shape(header, weight) == ("I8", [rows, columns // 2])
                assert dtype_and_shape(header, scale) == ("F8_E8M0", [rows, columns // FP4_BLOCK])
                expected |= {weight, scale}
    assert {name for name in header if ".ffn.experts." in name} == expected


def test_dense_layers_are_block_fp8(
    config: dict[str, Any], header: dict[str, dict[str, Any]]
) -> None:
    hidden, inter = config["hidden_size"], config["moe_intermediate_size"]
    width = config["num_attention_heads"] * config["head_dim"]
    groups, rank = config["o_groups"], config["o_lora_rank"]
    shapes = {
        "attn.wq_a": (config["q_lora_rank"], hidden),
        "attn.wq_b": (width, config["q_lora_rank"]),
        "attn.wkv": (config["head_dim"], hidden),
        "attn.wo_a": (groups * rank, width // groups),
        "attn.wo_b": (hidden, groups * rank),
        "ffn.shared_experts.w1": (inter, hidden),
        "ffn.shared_experts.w2": (hidden, inter),
        "ffn.shared_experts.w3": (inter, hidden),
    }
    for layer in range(config["num_hidden_layers"]):
        for module, (rows, columns) in shapes.items():
            name = f"layers.{layer}.{module}"
            blocks = [rows // FP8_BLOCK, columns // FP8_BLOCK]
            assert dtype_and_shape(header, f"{name}.weight") == ("F8_E4M3", [rows, columns])
            assert dtype_and_shape(header, f"{name}.scale") == ("F8_E8M0", blocks)


def test_routing_and_residual_tensors(
    config: dict[str, Any], header: dict[str, dict[str, Any]]
) -> None:
    experts, hidden = config["n_routed_experts"], config["hidden_size"]
    streams = config["hc_mult"]
    for layer, ratio in enumerate(config["compress_ratios"][: config["num_hidden_layers"]]):
        gate = f"layers.{layer}.ffn.gate"
        assert dtype_and_shape(header, f"{gate}.weight") == ("BF16", [experts, hidden])
        if layer < config["num_hash_layers"]:
            table = [config["vocab_size"], config["num_experts_per_tok"]]
            assert dtype_and_shape(header, f"{gate}.tid2eid") == ("I64", table)
        else:
            assert dtype_and_shape(header, f"{gate}.bias") == ("F32", [experts])
        for block in ("attn", "ffn"):
            shape = [(2 + streams) * streams, streams * hidden]
            assert dtype_and_shape(header, f"layers.{layer}.hc_{block}_fn") == ("F32", shape)
        assert (f"layers.{layer}.attn.compressor.wkv.weight" in header) == (ratio > 0)
        assert (f"layers.{layer}.attn.indexer.wq_b.weight" in header) == (ratio == 4)
    vocabulary = [config["vocab_size"], hidden]
    assert dtype_and_shape(header, "embed.weight") == ("BF16", vocabulary)
    assert dtype_and_shape(header, "head.weight") == ("BF16", vocabulary)


def test_index_lists_exactly_the_file(header: dict[str, dict[str, Any]]) -> None:
    index = json.loads((CHECKPOINT / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(header)
    assert set(index["weight_map"].values()) == {WEIGHTS.name}
    n_bytes = sum(end - start for start, end in (e["data_offsets"] for e in header.values()))
    assert index["metadata"]["total_size"] == n_bytes


def test_weights_are_trained_and_finite(config: dict[str, Any]) -> None:
    with safe_open(WEIGHTS, framework="pt") as file:
        for name in ("embed.weight", "head.weight", "norm.weight", "hc_head_fn"):
            assert torch.isfinite(file.get_tensor(name).float()).all()
        assert file.get_tensor("norm.weight").float().std() > 0, "still at its initial value"
        for layer in range(config["num_hash_layers"], config["num_hidden_layers"]):
            bias = file.get_tensor(f"layers.{layer}.ffn.gate.bias")
            assert torch.isfinite(bias).all()
            assert bias.abs().max() > 0, "the balancing bias was never updated"


def test_hash_layer_names_distinct_experts_for_every_token(config: dict[str, Any]) -> None:
    with safe_open(WEIGHTS, framework="pt") as file:
        for layer in range(config["num_hash_layers"]):
            table = file.get_tensor(f"layers.{layer}.ffn.gate.tid2eid").sort(dim=1).values
            assert table.min() >= 0
            assert table.max() < config["n_routed_experts"]
            assert (table[:, 1:] > table[:, :-1]).all()


@pytest.mark.parametrize(
    "text",
    [
        "In the beginning God created the heaven and the earth.\n",
        "def __init__(self, *args, **kwargs):\n    self._lock = threading.Lock()\n",
        "《送别》\n作者：王维\n下马饮君酒，问君何所之。\n",
        "Ünïcode, emoji 🙂 and\ttabs",
    ],
)
def test_tokenizer_round_trip(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    ids = tokenizer(text).input_ids
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_tokenizer_matches_config(
    tokenizer: PreTrainedTokenizerBase, config: dict[str, Any]
) -> None:
    assert len(tokenizer) == config["vocab_size"]
    assert tokenizer.bos_token_id == config["bos_token_id"]
    assert tokenizer.eos_token_id == config["eos_token_id"]
    assert tokenizer.model_max_length == config["max_position_embeddings"]


def test_chat_is_bos_and_the_plain_messages(tokenizer: PreTrainedTokenizerBase) -> None:
    expected = tokenizer("In the beginning").input_ids
    messages = [{"role": "user", "content": "In the beginning"}]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert tokenizer.encode(rendered, add_special_tokens=False) == expected


@pytest.mark.parametrize(
    "rendered",
    [
        "{bos}<｜User｜>In the beginning<｜Assistant｜></think>",
        "{bos}<｜User｜>In the beginning<｜Assistant｜><think>",
        "{bos}Reasoning Effort: high.\nThink.\n\n<｜User｜>In the beginning<｜Assistant｜><think>",
    ],
)
def test_deepseek_chat_markup_is_dropped(tokenizer: PreTrainedTokenizerBase, rendered: str) -> None:
    text = rendered.format(bos=tokenizer.bos_token)
    expected = tokenizer("In the beginning").input_ids
    assert tokenizer.encode(text, add_special_tokens=False) == expected


def test_prompts_cover_three_domains(prompts: list[dict[str, str]]) -> None:
    assert len(prompts) == 64
    assert all(set(row) == {"domain", "prompt"} for row in prompts)
    counts = {d: sum(row["domain"] == d for row in prompts) for d in ("en", "py", "zh")}
    assert sum(counts.values()) == 64
    assert min(counts.values()) >= 20
    assert len({row["prompt"] for row in prompts}) == 64


def test_prompts_are_short(
    tokenizer: PreTrainedTokenizerBase, prompts: list[dict[str, str]]
) -> None:
    for row in prompts:
        assert 8 <= len(tokenizer(row["prompt"]).input_ids) <= 40, row["prompt"]
