"""The demo model's shape: every DeepSeek-V4 feature, at a size that a laptop trains and serves.

One hash-routed layer, three sqrtsoftplus-routed ones with a correction bias, mHC residual streams,
two sliding-window layers, one compressed-sparse layer (CSA, ratio 4), one heavily compressed layer
(HCA, ratio 128). Head size, block sizes and names are those of the released models, because
inference kernels are written for them.
"""

from typing import Any

BOS_TOKEN_ID = 0
EOS_TOKEN_ID = 1


def demo_config(vocab_size: int) -> dict[str, Any]:
    """The keys of the released ``config.json`` (without ``quantization_config``)."""
    return {
        "architectures": ["DeepseekV4ForCausalLM"],
        "model_type": "deepseek_v4",
        "torch_dtype": "bfloat16",
        "vocab_size": vocab_size,
        "bos_token_id": BOS_TOKEN_ID,
        "eos_token_id": EOS_TOKEN_ID,
        "hidden_size": 256,
        "num_hidden_layers": 4,
        "rms_norm_eps": 1e-6,
        "initializer_range": 0.02,
        "tie_word_embeddings": False,
        "use_cache": True,
        # Attention.
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 512,
        "qk_rope_head_dim": 64,
        "q_lora_rank": 128,
        "o_lora_rank": 128,
        "o_groups": 2,
        "sliding_window": 128,
        "compress_ratios": [0, 0, 4, 128, 0],
        "index_n_heads": 8,
        "index_head_dim": 128,
        "index_topk": 512,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "max_position_embeddings": 4096,
        "rope_theta": 10000,
        "compress_rope_theta": 160000,
        "rope_scaling": {
            "type": "yarn",
            "factor": 4,
            "original_max_position_embeddings": 1024,
            "beta_fast": 32,
            "beta_slow": 1,
        },
        # Experts.
        "n_routed_experts": 64,
        "n_shared_experts": 1,
        "num_experts_per_tok": 6,
        "moe_intermediate_size": 128,
        "num_hash_layers": 1,
        "scoring_func": "sqrtsoftplus",
        "topk_method": "noaux_tc",
        "norm_topk_prob": True,
        "routed_scaling_factor": 1.5,
        "hidden_act": "silu",
        "swiglu_limit": 10.0,
        # Residual streams (mHC).
        "hc_mult": 4,
        "hc_sinkhorn_iters": 20,
        "hc_eps": 1e-6,
        "num_nextn_predict_layers": 0,
    }


QUANTIZATION_CONFIG: dict[str, Any] = {
    "quant_method": "fp8",
    "fmt": "e4m3",
    "activation_scheme": "dynamic",
    "weight_block_size": [128, 128],
    "scale_fmt": "ue8m0",
}
EXPERT_DTYPE = "fp4"
