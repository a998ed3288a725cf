"""Qwen3: Mixture-of-Experts (two sizes) and dense."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tests.checkpoints.tokenizer import VOCAB_SIZE
from tests.checkpoints.weights import WeightSource
from tests.checkpoints.writer import Config, write_model


@dataclass(frozen=True, slots=True)
class Qwen3Shape:
    """Sizes of a Qwen3 model; `experts` 0 means dense layers of width `inter`."""

    layers: int
    hidden: int
    inter: int
    experts: int
    top_k: int
    heads: int
    kv_heads: int
    head_dim: int
    lead: float


TINY_MOE = Qwen3Shape(
    layers=3, hidden=128, inter=64, experts=16, top_k=4, heads=4, kv_heads=2, head_dim=32, lead=0.8
)
TINY_DENSE = Qwen3Shape(
    layers=3, hidden=128, inter=256, experts=0, top_k=0, heads=4, kv_heads=2, head_dim=32, lead=1.0
)
MID_MOE = Qwen3Shape(
    layers=8,
    hidden=768,
    inter=384,
    experts=64,
    top_k=8,
    heads=12,
    kv_heads=4,
    head_dim=64,
    lead=0.5,
)
"""0.93 GB in bf16: large enough that expert GEMMs dominate, small enough for one machine."""


def make_qwen3(directory: Path, shape: Qwen3Shape, *, seed: int) -> Path:
    """Write a bf16 Qwen3 checkpoint of the given shape."""
    source = WeightSource(seed)
    tensors = source.ends(shape.hidden, lead=shape.lead)
    for layer in range(shape.layers):
        tensors |= _layer(source, f"model.layers.{layer}", shape)
    bf16 = {name: tensor.to(torch.bfloat16) for name, tensor in tensors.items()}
    return write_model(directory, bf16, _config(shape))


def _layer(source: WeightSource, prefix: str, shape: Qwen3Shape) -> dict[str, Tensor]:
    attention, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"
    query, key_value = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    tensors = {
        f"{prefix}.input_layernorm.weight": source.norm(shape.hidden),
        f"{prefix}.post_attention_layernorm.weight": source.norm(shape.hidden),
        f"{attention}.q_proj.weight": source.linear(query, shape.hidden),
        f"{attention}.k_proj.weight": source.linear(key_value, shape.hidden),
        f"{attention}.v_proj.weight": source.linear(key_value, shape.hidden),
        f"{attention}.o_proj.weight": source.linear(shape.hidden, query),
        f"{attention}.q_norm.weight": source.norm(shape.head_dim),
        f"{attention}.k_norm.weight": source.norm(shape.head_dim),
    }
    if not shape.experts:
        return tensors | gated_mlp(source, mlp, shape.hidden, shape.inter)
    tensors[f"{mlp}.gate.weight"] = source.linear(shape.experts, shape.hidden, gain=2.0)
    for expert in range(shape.experts):
        tensors |= gated_mlp(source, f"{mlp}.experts.{expert}", shape.hidden, shape.inter)
    return tensors


def gated_mlp(
    source: WeightSource, prefix: str, hidden: int, inter: int, gain: float = 2.0
) -> dict[str, Tensor]:
    """SwiGLU weights, named as Qwen and DeepSeek-V3 do; `gain` scales the output."""
    return {
        f"{prefix}.gate_proj.weight": source.linear(inter, hidden),
        f"{prefix}.up_proj.weight": source.linear(inter, hidden),
        f"{prefix}.down_proj.weight": source.linear(hidden, inter, gain),
    }


def _config(shape: Qwen3Shape) -> Config:
    config: Config = {
        "architectures": ["Qwen3MoeForCausalLM" if shape.experts else "Qwen3ForCausalLM"],
        "model_type": "qwen3_moe" if shape.experts else "qwen3",
        "vocab_size": VOCAB_SIZE,
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "intermediate_size": shape.inter,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "max_position_embeddings": 4096,
        "attention_bias": False,
        "tie_word_embeddings": False,
    }
    if shape.experts:
        config |= {
            "num_experts": shape.experts,
            "num_experts_per_tok": shape.top_k,
            "moe_intermediate_size": shape.inter,
            "norm_topk_prob": True,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
        }
    return config
