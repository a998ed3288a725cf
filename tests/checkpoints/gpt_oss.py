"""gpt-oss: clamped SwiGLU with expert biases, attention sinks, alternating sliding windows.

Written with bf16 (dequantised) experts: gate and up columns interleaved, input dimension first.
"""

from pathlib import Path

import torch
from torch import Tensor

from tests.checkpoints.tokenizer import VOCAB_SIZE
from tests.checkpoints.weights import WeightSource
from tests.checkpoints.writer import Config, write_model

LAYERS, HIDDEN, INTER, EXPERTS, TOP_K = 4, 128, 64, 16, 4
HEADS, KV_HEADS, HEAD_DIM = 4, 2, 64
LEAD = 1.0


def make_gpt_oss(directory: Path, *, seed: int) -> Path:
    """Write a bf16 gpt-oss checkpoint: 4 layers of 16 experts, top-4."""
    source = WeightSource(seed)
    tensors = source.ends(HIDDEN, lead=LEAD)
    for layer in range(LAYERS):
        tensors |= _layer(source, f"model.layers.{layer}")
    bf16 = {name: tensor.to(torch.bfloat16) for name, tensor in tensors.items()}
    return write_model(directory, bf16, _config())


def _layer(source: WeightSource, prefix: str) -> dict[str, Tensor]:
    attention, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"
    tensors = {
        f"{prefix}.input_layernorm.weight": source.norm(HIDDEN),
        f"{prefix}.post_attention_layernorm.weight": source.norm(HIDDEN),
        f"{attention}.sinks": source.normal(HEADS),
        f"{mlp}.router.weight": source.linear(EXPERTS, HIDDEN, gain=2.0),
        f"{mlp}.router.bias": source.normal(EXPERTS, std=0.2),
    }
    for name, out, columns in (
        ("q_proj", HEADS * HEAD_DIM, HIDDEN),
        ("k_proj", KV_HEADS * HEAD_DIM, HIDDEN),
        ("v_proj", KV_HEADS * HEAD_DIM, HIDDEN),
        ("o_proj", HIDDEN, HEADS * HEAD_DIM),
    ):
        tensors[f"{attention}.{name}.weight"] = source.linear(out, columns)
        tensors[f"{attention}.{name}.bias"] = source.normal(out, std=0.1)
    for name, rows, columns in (
        ("gate_up_proj", HIDDEN, 2 * INTER),
        ("down_proj", INTER, HIDDEN),
    ):
        experts = source.normal(EXPERTS, rows, columns, std=rows**-0.5)
        tensors[f"{mlp}.experts.{name}"] = experts
        tensors[f"{mlp}.experts.{name}_bias"] = source.normal(EXPERTS, columns, std=0.1)
    return tensors


def _config() -> Config:
    return {
        "architectures": ["GptOssForCausalLM"],
        "model_type": "gpt_oss",
        "vocab_size": VOCAB_SIZE,
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "intermediate_size": INTER,
        "num_local_experts": EXPERTS,
        "num_experts_per_tok": TOP_K,
        "layer_types": ["sliding_attention", "full_attention"] * (LAYERS // 2),
        "sliding_window": 128,
        "swiglu_limit": 7.0,
        "hidden_act": "silu",
        "attention_bias": True,
        "rms_norm_eps": 1e-5,
        "rope_theta": 150000.0,
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 1024,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "truncate": False,
        },
        "max_position_embeddings": 4096,
        "tie_word_embeddings": False,
    }
