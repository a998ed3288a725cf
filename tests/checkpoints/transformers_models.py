"""Tiny checkpoints of families that only vLLM's own loader reads, written by transformers.

transformers makes the model from a configuration, so names, shapes and config.json are those that
its users have. Then weights are drawn as in the other checkpoints: every matrix keeps unit
variance, norms scale by about one, and the output head favours one successor of each token.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.checkpoints.tokenizer import BOS_ID, EOS_ID, VOCAB_SIZE, byte_tokenizer, tokenizer_config
from tests.checkpoints.weights import WeightSource
from tests.checkpoints.writer import write_json

LEAD = 0.8
EXPERTS, INTER = 16, 64

COMMON: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
    "bos_token_id": BOS_ID,
    "eos_token_id": EOS_ID,
    "pad_token_id": None,
}
MLA = {
    "q_lora_rank": 64,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 64,
    "qk_rope_head_dim": 64,
    "v_head_dim": 64,
}
SHARED_OF_DEEPSEEK = {
    "intermediate_size": 256,
    "moe_intermediate_size": INTER,
    "n_routed_experts": EXPERTS,
    "num_experts_per_tok": 4,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
LINEAR_OF_QWEN = {
    "moe_intermediate_size": INTER,
    "shared_expert_intermediate_size": INTER,
    "num_experts": EXPERTS,
    "num_experts_per_tok": 4,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "num_hidden_layers": 4,
}
OWN: dict[str, dict[str, Any]] = {
    "afmoe": {
        "intermediate_size": 256,
        "moe_intermediate_size": INTER,
        "num_experts": EXPERTS,
        "num_experts_per_tok": 4,
        "num_shared_experts": 1,
        "num_dense_layers": 1,
        "global_attn_every_n_layers": 2,
        "sliding_window": 64,
        # Published checkpoints have these; transformers knows no other way.
        "score_func": "sigmoid",
        "route_norm": True,
        "n_group": 1,
        "topk_group": 1,
    },
    # For a dense layer vLLM asks for a norm that transformers gives layers with experts only. Here,
    # as in GLM-4-MoE-Lite, `head_dim` is another name of `qk_rope_head_dim`.
    "axk1": SHARED_OF_DEEPSEEK | MLA | {"first_k_dense_replace": 0, "head_dim": 64},
    "cohere2_moe": {
        "intermediate_size": INTER,
        "num_experts": EXPERTS,
        "num_experts_per_tok": 4,
        "num_shared_experts": 1,
        "first_k_dense_replace": 1,
        "prefix_dense_intermediate_size": 256,
        "sliding_window": 64,
        "sliding_window_pattern": 2,
        "logit_scale": 1.0,
        "tie_word_embeddings": True,
    },
    "dbrx": {
        "d_model": 128,
        "n_heads": 4,
        "n_layers": 2,
        "max_seq_len": 2048,
        "attn_config": {"kv_n_heads": 4, "clip_qkv": 8.0, "rope_theta": 10000.0},
        "ffn_config": {"ffn_hidden_size": INTER, "moe_num_experts": EXPERTS, "moe_top_k": 4},
    },
    "deepseek_v2": SHARED_OF_DEEPSEEK | MLA,
    "dots1": SHARED_OF_DEEPSEEK,
    "ernie4_5_moe": {
        "intermediate_size": 256,
        "moe_intermediate_size": INTER,
        "moe_num_experts": EXPERTS,
        "moe_k": 4,
        "moe_num_shared_experts": 1,
        "moe_layer_start_index": 1,
    },
    "exaone_moe": {
        "intermediate_size": 256,
        "moe_intermediate_size": INTER,
        "num_experts": EXPERTS,
        "num_experts_per_tok": 4,
        "num_shared_experts": 1,
        "first_k_dense_replace": 1,
        "sliding_window": 64,
        "sliding_window_pattern": 2,
    },
    "flex_olmo": {
        "intermediate_size": INTER,
        "num_experts": EXPERTS,
        "num_experts_per_tok": 4,
    },
    "glm4_moe": SHARED_OF_DEEPSEEK,
    "gemma4_text": {
        "intermediate_size": 256,
        "moe_intermediate_size": INTER,
        "num_experts": EXPERTS,
        "top_k_experts": 4,
        "enable_moe_block": True,
        "hidden_size_per_layer_input": 0,
        "layer_types": ["sliding_attention", "full_attention"],
        "sliding_window": 64,
        "tie_word_embeddings": True,
    },
    "glm4_moe_lite": SHARED_OF_DEEPSEEK | MLA | {"head_dim": 64},
    "granitemoe": {
        "intermediate_size": INTER,
        "num_local_experts": EXPERTS,
        "num_experts_per_tok": 4,
    },
    "granitemoe_swa": {
        "intermediate_size": INTER,
        "shared_intermediate_size": 128,
        "num_local_experts": EXPERTS,
        "num_experts_per_tok": 4,
        "sliding_window": 64,
    },
    "granitemoehybrid": {
        "intermediate_size": INTER,
        "shared_intermediate_size": 128,
        "num_local_experts": EXPERTS,
        "num_experts_per_tok": 4,
        "position_embedding_type": "rope",
        "layer_types": ["full_attention", "full_attention"],
        "mamba_n_heads": 8,
    },
    "granitemoeshared": {
        "intermediate_size": INTER,
        "shared_intermediate_size": 128,
        "num_local_experts": EXPERTS,
        "num_experts_per_tok": 4,
    },
    "hunyuan_v1_moe": {
        "intermediate_size": INTER,
        "num_experts": EXPERTS,
        "moe_topk": 4,
        "moe_intermediate_size": INTER,
    },
    "hy_v3": {
        "intermediate_size": 256,
        "moe_intermediate_size": INTER,
        "num_experts": EXPERTS,
        "num_experts_per_tok": 4,
        "num_shared_experts": 1,
        # Published checkpoints have these; transformers has other names for them.
        "first_k_dense_replace": 1,
        "expert_hidden_dim": INTER,
        "qk_norm": True,
        "route_norm": True,
    },
    "jamba": {
        "intermediate_size": INTER,
        "num_experts": EXPERTS,
        "num_experts_per_tok": 2,
        "use_mamba_kernels": False,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
    },
    "jetmoe": {
        "intermediate_size": INTER,
        "num_local_experts": EXPERTS,
        "num_experts_per_tok": 2,
        "kv_channels": 32,
    },
    "kimi_linear": SHARED_OF_DEEPSEEK
    | MLA
    | {
        "q_lora_rank": None,
        "num_experts": EXPERTS,
        "num_shared_experts": 1,
        "linear_attn_config": {
            "head_dim": 32,
            "num_heads": 4,
            "short_conv_kernel_size": 4,
            "kda_layers": [1],
            "full_attn_layers": [2],
        },
    },
    "laguna": {
        "intermediate_size": 256,
        "moe_intermediate_size": INTER,
        "shared_expert_intermediate_size": INTER,
        "num_experts": EXPERTS,
        "num_experts_per_tok": 4,
        "sliding_window": 64,
    },
    "lfm2_moe": {
        "intermediate_size": 256,
        "moe_intermediate_size": INTER,
        "num_experts": EXPERTS,
        "num_experts_per_tok": 4,
        "num_dense_layers": 1,
        "layer_types": ["conv", "full_attention"],
    },
    "llama4_text": {
        "intermediate_size": INTER,
        "intermediate_size_mlp": 128,
        "num_local_experts": EXPERTS,
        "num_experts_per_tok": 1,
    },
    "longcat_flash": MLA
    | {
        "ffn_hidden_size": 256,
        "expert_ffn_hidden_size": INTER,
        "num_layers": 1,
        "n_routed_experts": EXPERTS,
        "zero_expert_num": 8,
        "moe_topk": 4,
        "head_dim": 64,
        # Published checkpoints have these; transformers derives them.
        "mla_scale_q_lora": True,
        "mla_scale_kv_lora": True,
        "zero_expert_type": "identity",
    },
    "mellum": {
        "intermediate_size": 256,
        "moe_intermediate_size": INTER,
        "num_experts": EXPERTS,
        "num_experts_per_tok": 4,
    },
    "mimo_v2_flash": {
        "intermediate_size": 256,
        "moe_intermediate_size": INTER,
        "n_routed_experts": EXPERTS,
        "num_experts_per_tok": 4,
        "v_head_dim": 32,
        # Published checkpoints have these; transformers has other names for them.
        "hybrid_layer_pattern": [0, 1],
        "moe_layer_freq": [0, 1],
        "layernorm_epsilon": 1e-5,
        "sliding_window_size": 64,
        "swa_head_dim": 32,
        "swa_v_head_dim": 32,
        "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 4,
    },
    "minimax_m2": {
        "intermediate_size": INTER,
        "num_local_experts": EXPERTS,
        "num_experts_per_tok": 4,
        # Published checkpoints have these; transformers has other names for them, or none.
        "rotary_dim": 16,
        "scoring_func": "sigmoid",
        "use_routing_bias": True,
    },
    "nemotron_h": {
        "intermediate_size": 256,
        "moe_intermediate_size": INTER,
        "moe_shared_expert_intermediate_size": INTER,
        "n_routed_experts": EXPERTS,
        "num_experts_per_tok": 4,
        "hybrid_override_pattern": "*E*E",
    },
    "olmoe": {
        "intermediate_size": INTER,
        "num_experts": EXPERTS,
        "num_experts_per_tok": 4,
    },
    "phimoe": {
        "intermediate_size": INTER,
        "num_local_experts": EXPERTS,
        "num_experts_per_tok": 2,
        # vLLM's class has these biases whatever the configuration says.
        "attention_bias": True,
        "lm_head_bias": True,
    },
    "qwen2_moe": {
        "intermediate_size": 256,
        "moe_intermediate_size": INTER,
        "shared_expert_intermediate_size": INTER,
        "num_experts": EXPERTS,
        "num_experts_per_tok": 4,
    },
    "qwen3_5_moe_text": LINEAR_OF_QWEN,
    "qwen3_next": {"intermediate_size": 256} | LINEAR_OF_QWEN,
    "solar_open": SHARED_OF_DEEPSEEK,
    "zaya": {
        "moe_intermediate_size": INTER,
        "num_experts": EXPERTS,
        "num_experts_per_tok": 1,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    },
}
"""What each kind's configuration has beside or instead of `COMMON`; kinds are `model_type`s."""

PUBLISHED_AS = {"phimoe": "PhiMoEForCausalLM"}
"""Class in config.json of published checkpoints, where transformers names its own differently."""


def make_with_transformers(directory: Path, *, kind: str, seed: int) -> Path:
    """Write the checkpoint of `kind` into `directory` and return it."""
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    config = CONFIG_MAPPING[kind](**COMMON | OWN[kind])
    torch.manual_seed(seed)  # for what is not drawn below
    model = AutoModelForCausalLM.from_config(config)
    draw_weights(model, WeightSource(seed))
    model.to(torch.bfloat16).save_pretrained(directory, max_shard_size="1GB")
    if "zero_expert_num" in OWN[kind]:
        _drop_zero_experts(directory / "model.safetensors")
    if kind in PUBLISHED_AS:
        written = json.loads((directory / "config.json").read_text())
        write_json(directory / "config.json", written | {"architectures": [PUBLISHED_AS[kind]]})
    byte_tokenizer().save(str(directory / "tokenizer.json"))
    write_json(directory / "tokenizer_config.json", tokenizer_config())
    return directory


def _drop_zero_experts(file: Path) -> None:
    """They hand on what they are given and have no weights, of which transformers writes some."""
    routed = {f".experts.{number}." for number in range(EXPERTS)}
    kept = {
        name: tensor
        for name, tensor in load_file(file).items()
        if ".experts." not in name or any(one in name for one in routed)
    }
    save_file(kept, file, {"format": "pt"})


@torch.no_grad()
def draw_weights(model: nn.Module, source: WeightSource) -> None:
    """In the order of the parameters' names, so that it depends on nothing else."""
    embedding = source.normal(VOCAB_SIZE, model.get_input_embeddings().embedding_dim)
    for name, parameter in sorted(model.named_parameters()):
        if (drawn := _drawn(name, parameter, source)) is not None:
            parameter.copy_(drawn)
    model.get_input_embeddings().weight.copy_(embedding)
    model.get_output_embeddings().weight.copy_(source.head(embedding, lead=LEAD))


def _drawn(name: str, parameter: Tensor, source: WeightSource) -> Tensor | None:
    """None: transformers' own initial values stay, as for the decays of state-space models."""
    if "norm" in name and parameter.ndim == 1:
        scale = source.norm(len(parameter))
        # Some families store what their norm adds to one.
        return scale if parameter.any() else scale - 1
    if parameter.ndim in (2, 3) and "conv" not in name and "A_log" not in name:
        gain = 2.0 if "gate.weight" in name or "router" in name else 1.0
        # Experts of some families are stored [E, in, out].
        fan_in = min(parameter.shape[-1], 128) if parameter.ndim == 2 else parameter.shape[-1]
        return source.normal(*parameter.shape, std=gain * fan_in**-0.5)
    return None
