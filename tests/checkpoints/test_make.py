"""The generated checkpoints: deterministic, loadable, and fit to judge implementations by."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.checkpoints.formats import E2M1_VALUES, quantize_fp8_blocks, quantize_mxfp4
from tests.checkpoints.make import KINDS, make_checkpoint

TINY_KINDS = [kind for kind in KINDS if kind != "mid_qwen3"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Makes each kind once for this file."""
    return cache(lambda kind: make_checkpoint(kind, tmp_path_factory.mktemp(kind)))


def weights_of(directory: Path) -> dict[str, Tensor]:
    return load_file(directory / "model.safetensors")


def test_unknown_kind_names_the_choices(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'llama'.*qwen3_moe"):
        make_checkpoint("llama", tmp_path)


def test_seed_decides_every_weight(tmp_path: Path) -> None:
    first = weights_of(make_checkpoint("qwen3_moe", tmp_path / "a", seed=1))
    again = weights_of(make_checkpoint("qwen3_moe", tmp_path / "b", seed=1))
    other = weights_of(make_checkpoint("qwen3_moe", tmp_path / "c", seed=2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("kind", TINY_KINDS)
def test_transformers_reads_config_and_tokenizer(
    kind: str, checkpoint: Callable[[str], Path]
) -> None:
    from transformers import AutoConfig, AutoTokenizer

    directory = checkpoint(kind)
    config = AutoConfig.from_pretrained(directory)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    text = "Grüße, 世界!\n\t{}"
    ids = tokenizer(text).input_ids
    assert ids == list(text.encode())
    assert tokenizer.decode(ids) == text
    assert (tokenizer.eos_token_id, tokenizer.bos_token_id) == (256, 257)
    assert tokenizer.eos_token_id == config.eos_token_id
    chat = [{"role": "user", "content": "hi"}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    assert prompt == "user: hi\nassistant: "


@pytest.mark.parametrize("kind", TINY_KINDS)
def test_index_lists_every_tensor(kind: str, checkpoint: Callable[[str], Path]) -> None:
    directory = checkpoint(kind)
    index = json.loads((directory / "model.safetensors.index.json").read_text())
    tensors = weights_of(directory)
    assert index["weight_map"].keys() == tensors.keys()
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in tensors.values())


def test_routing_inputs_are_not_trivial(checkpoint: Callable[[str], Path]) -> None:
    v3 = weights_of(checkpoint("deepseek_v3"))
    v4 = weights_of(checkpoint("deepseek_v4_mxfp4"))
    assert v3["model.layers.1.mlp.gate.e_score_correction_bias"].std() > 0.1
    assert v4["layers.2.ffn.gate.bias"].std() > 0.1
    first, second = (v4[f"layers.{layer}.ffn.gate.tid2eid"] for layer in (0, 1))
    assert not torch.equal(first, second)
    assert all(row.unique().numel() == row.numel() for row in first)
    assert "layers.2.ffn.gate.tid2eid" not in v4
    assert "layers.0.ffn.gate.bias" not in v4


def test_v4_formats_hold_the_same_numbers(checkpoint: Callable[[str], Path]) -> None:
    bf16, mxfp4, fp8 = (
        weights_of(checkpoint(f"deepseek_v4_{name}")) for name in ("bf16", "mxfp4", "fp8")
    )
    expert, dense = "layers.3.ffn.experts.5.w1", "layers.1.attn.wq_b"
    assert torch.equal(bf16[f"{expert}.weight"].float(), dequantize_mxfp4(mxfp4, expert))
    assert torch.equal(bf16[f"{expert}.weight"].float(), dequantize_fp8(fp8, expert))
    for quantised in (mxfp4, fp8):
        assert torch.equal(bf16[f"{dense}.weight"].float(), dequantize_fp8(quantised, dense))
    assert mxfp4[f"{expert}.scale"].dtype == torch.float8_e8m0fnu


def dequantize_mxfp4(tensors: dict[str, Tensor], name: str) -> Tensor:
    packed = tensors[f"{name}.weight"].view(torch.uint8)
    codes = torch.stack([packed & 15, packed >> 4], -1).flatten(-2).long()
    scale = torch.exp2(tensors[f"{name}.scale"].view(torch.uint8).float() - 127)
    return E2M1_VALUES[codes] * scale.repeat_interleave(32, -1)


def dequantize_fp8(tensors: dict[str, Tensor], name: str) -> Tensor:
    scale = tensors[f"{name}.scale"].float().repeat_interleave(128, 0).repeat_interleave(128, 1)
    return tensors[f"{name}.weight"].float() * scale


def test_mxfp4_rounds_to_the_nearest_value() -> None:
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    quantized = quantize_mxfp4(weight)
    scale = quantized.scale.float().repeat_interleave(32, -1)
    nearest = (weight[..., None] - E2M1_VALUES * scale[..., None]).abs().amin(-1)
    assert torch.equal((weight - quantized.values).abs(), nearest)


def test_fp8_blocks_keep_three_mantissa_bits() -> None:
    weight = torch.randn(256, 128, generator=torch.Generator().manual_seed(0))
    quantized = quantize_fp8_blocks(weight)
    assert quantized.scale.shape == (2, 1)
    error = (weight - quantized.values).abs()
    smallest_step = quantized.scale.repeat_interleave(128, 0) * 2**-9
    assert (error <= torch.maximum(weight.abs() * 2**-4, smallest_step)).all()


def test_rounding_keeps_greedy_tokens_but_wrong_experts_do_not(
    checkpoint: Callable[[str], Path],
) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        checkpoint("qwen3_moe"), dtype=torch.float32
    ).eval()
    prompts = torch.tensor([list(b"The quick brown "), list(b"In 1905 Einstein"), [65] * 16])
    with torch.no_grad():
        text = model.generate(prompts, max_new_tokens=48, do_sample=False)

        def next_tokens() -> Tensor:
            return model(text, use_cache=False).logits[:, 15:-1].argmax(-1)

        model.to(torch.bfloat16)
        rounded = (next_tokens() == text[:, 16:]).float().mean()
        for layer in model.model.layers:
            layer.mlp.experts.down_proj.data = layer.mlp.experts.down_proj.roll(1, 0)
        wrong = (next_tokens() == text[:, 16:]).float().mean()
    assert rounded > 0.97
    assert wrong < 0.9
