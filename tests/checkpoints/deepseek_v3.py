"""DeepSeek-V3: latent attention (MLA), grouped top-k with a correction bias, a shared expert.

The first layer is dense, as in the released models. vLLM's CPU latent attention fixes the latent
width to 512 and the rotary part to 64.
"""

from pathlib import Path

import torch
from torch import Tensor

from tests.checkpoints.qwen3 import gated_mlp
from tests.checkpoints.tokenizer import VOCAB_SIZE
from tests.checkpoints.weights import WeightSource
from tests.checkpoints.writer import Config, write_model

LAYERS, DENSE_LAYERS, HIDDEN, DENSE_INTER, INTER = 4, 1, 128, 256, 64
EXPERTS, TOP_K, GROUPS, TOP_GROUPS, SHARED_EXPERTS = 32, 4, 4, 2, 1
HEADS, NOPE_DIM, ROPE_DIM, V_DIM, Q_RANK, KV_RANK = 4, 64, 64, 64, 64, 512
ROUTED_SCALE = 1.5
LEAD = 1.0
EXPERT_GAIN = 1.2


def make_deepseek_v3(directory: Path, *, seed: int, predictors: int = 0) -> Path:
    """Write a bf16 DeepSeek-V3 checkpoint: 4 layers, 32 experts in 4 groups, top-4.

    predictors: layers of multi-token prediction behind them.
    """
    source = WeightSource(seed)
    tensors = source.ends(HIDDEN, lead=LEAD)
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}"
        tensors |= _attention(source, prefix)
        dense = layer < DENSE_LAYERS
        mlp = f"{prefix}.mlp"
        tensors |= gated_mlp(source, mlp, HIDDEN, DENSE_INTER) if dense else _moe(source, mlp)
    for layer in range(LAYERS, LAYERS + predictors):
        tensors |= _predictor(source, f"model.layers.{layer}", tensors)
    written = {
        name: tensor if name.endswith("correction_bias") else tensor.to(torch.bfloat16)
        for name, tensor in tensors.items()
    }
    return write_model(directory, written, _config() | {"num_nextn_predict_layers": predictors})


def _predictor(source: WeightSource, prefix: str, model: dict[str, Tensor]) -> dict[str, Tensor]:
    """A layer that guesses the token after next. It looks at the next token's embedding more than
    at the hidden state, so that the favourite successor is its guess as well as the model's."""
    embedded = torch.eye(HIDDEN) + source.linear(HIDDEN, HIDDEN, gain=0.1)
    return {
        f"{prefix}.embed_tokens.weight": model["model.embed_tokens.weight"],
        f"{prefix}.enorm.weight": source.norm(HIDDEN),
        f"{prefix}.hnorm.weight": source.norm(HIDDEN),
        f"{prefix}.eh_proj.weight": torch.cat(
            [embedded, source.linear(HIDDEN, HIDDEN, gain=0.3)], dim=1
        ),
        f"{prefix}.shared_head.norm.weight": model["model.norm.weight"],
        f"{prefix}.shared_head.head.weight": model["lm_head.weight"],
        **_attention(source, prefix),
        **_moe(source, f"{prefix}.mlp"),
    }


def _attention(source: WeightSource, prefix: str) -> dict[str, Tensor]:
    attention = f"{prefix}.self_attn"
    kv_out = HEADS * (NOPE_DIM + V_DIM)
    return {
        f"{prefix}.input_layernorm.weight": source.norm(HIDDEN),
        f"{prefix}.post_attention_layernorm.weight": source.norm(HIDDEN),
        f"{attention}.q_a_proj.weight": source.linear(Q_RANK, HIDDEN),
        f"{attention}.q_a_layernorm.weight": source.norm(Q_RANK),
        f"{attention}.q_b_proj.weight": source.linear(HEADS * (NOPE_DIM + ROPE_DIM), Q_RANK),
        f"{attention}.kv_a_proj_with_mqa.weight": source.linear(KV_RANK + ROPE_DIM, HIDDEN),
        f"{attention}.kv_a_layernorm.weight": source.norm(KV_RANK),
        f"{attention}.kv_b_proj.weight": source.linear(kv_out, KV_RANK),
        f"{attention}.o_proj.weight": source.linear(HIDDEN, HEADS * V_DIM),
    }


def _moe(source: WeightSource, prefix: str) -> dict[str, Tensor]:
    tensors = {
        f"{prefix}.gate.weight": source.linear(EXPERTS, HIDDEN, gain=2.0),
        f"{prefix}.gate.e_score_correction_bias": source.normal(EXPERTS, std=0.2),
    }
    for expert in range(EXPERTS):
        tensors |= gated_mlp(source, f"{prefix}.experts.{expert}", HIDDEN, INTER, EXPERT_GAIN)
    tensors |= gated_mlp(
        source, f"{prefix}.shared_experts", HIDDEN, INTER * SHARED_EXPERTS, EXPERT_GAIN
    )
    return tensors


def _config() -> Config:
    return {
        "architectures": ["DeepseekV3ForCausalLM"],
        "model_type": "deepseek_v3",
        "vocab_size": VOCAB_SIZE,
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "first_k_dense_replace": DENSE_LAYERS,
        "moe_layer_freq": 1,
        "intermediate_size": DENSE_INTER,
        "moe_intermediate_size": INTER,
        "n_routed_experts": EXPERTS,
        "num_experts_per_tok": TOP_K,
        "n_shared_experts": SHARED_EXPERTS,
        "n_group": GROUPS,
        "topk_group": TOP_GROUPS,
        "topk_method": "noaux_tc",
        "scoring_func": "sigmoid",
        "norm_topk_prob": True,
        "routed_scaling_factor": ROUTED_SCALE,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "q_lora_rank": Q_RANK,
        "kv_lora_rank": KV_RANK,
        "qk_nope_head_dim": NOPE_DIM,
        "qk_rope_head_dim": ROPE_DIM,
        "v_head_dim": V_DIM,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "max_position_embeddings": 2048,
        "attention_bias": False,
        "tie_word_embeddings": False,
    }
