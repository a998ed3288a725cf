"""Mixtral: softmax over the chosen experts, no shared expert."""

from pathlib import Path

import torch
from torch import Tensor

from tests.checkpoints.tokenizer import VOCAB_SIZE
from tests.checkpoints.weights import WeightSource
from tests.checkpoints.writer import Config, write_model

LAYERS, HIDDEN, INTER = 3, 128, 128
EXPERTS, TOP_K = 16, 2
HEADS, KV_HEADS, HEAD_DIM = 4, 2, 32
LEAD = 0.8


def make_mixtral(directory: Path, *, seed: int) -> Path:
    """Write a bf16 Mixtral checkpoint: 3 layers of 16 experts, top-2."""
    source = WeightSource(seed)
    tensors = source.ends(HIDDEN, lead=LEAD)
    for layer in range(LAYERS):
        tensors |= _layer(source, f"model.layers.{layer}")
    bf16 = {name: tensor.to(torch.bfloat16) for name, tensor in tensors.items()}
    return write_model(directory, bf16, _config())


def _layer(source: WeightSource, prefix: str) -> dict[str, Tensor]:
    attention, moe = f"{prefix}.self_attn", f"{prefix}.block_sparse_moe"
    tensors = {
        f"{prefix}.input_layernorm.weight": source.norm(HIDDEN),
        f"{prefix}.post_attention_layernorm.weight": source.norm(HIDDEN),
        f"{attention}.q_proj.weight": source.linear(HEADS * HEAD_DIM, HIDDEN),
        f"{attention}.k_proj.weight": source.linear(KV_HEADS * HEAD_DIM, HIDDEN),
        f"{attention}.v_proj.weight": source.linear(KV_HEADS * HEAD_DIM, HIDDEN),
        f"{attention}.o_proj.weight": source.linear(HIDDEN, HEADS * HEAD_DIM),
        f"{moe}.gate.weight": source.linear(EXPERTS, HIDDEN, gain=2.0),
    }
    for expert in range(EXPERTS):
        tensors[f"{moe}.experts.{expert}.w1.weight"] = source.linear(INTER, HIDDEN)
        tensors[f"{moe}.experts.{expert}.w2.weight"] = source.linear(HIDDEN, INTER, gain=1.5)
        tensors[f"{moe}.experts.{expert}.w3.weight"] = source.linear(INTER, HIDDEN)
    return tensors


def _config() -> Config:
    return {
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "vocab_size": VOCAB_SIZE,
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "intermediate_size": INTER,
        "num_local_experts": EXPERTS,
        "num_experts_per_tok": TOP_K,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "max_position_embeddings": 4096,
        "sliding_window": None,
        "tie_word_embeddings": False,
    }
