"""DeepSeek-V4 in the tensor layout DeepSeek releases, in three number formats.

- `bf16`: everything bf16;
- `mxfp4`: dense matrices FP8 in 128 x 128 blocks with e8m0 scales, experts MXFP4, as released;
- `fp8`: dense matrices and experts FP8 in 128 x 128 blocks with float32 scales.

For one seed the three hold exactly the same numbers: the master weights lie on the quantised grid.
Four layers cover what differs per layer: two hash-routed and two scored ones; plain sliding-window
attention, attention compressed by 4 with an indexer, and attention compressed by 128. vLLM's CPU
kernels fix the head width to 512 and accept 64, 128, 256 or 384 experts with top-6 or top-8.
"""

from enum import StrEnum
from pathlib import Path

import torch
from torch import Tensor

from tests.checkpoints.formats import FP8_BLOCK, quantize_fp8_blocks, quantize_mxfp4
from tests.checkpoints.tokenizer import VOCAB_SIZE
from tests.checkpoints.weights import WeightSource
from tests.checkpoints.writer import Config, write_model

HIDDEN, INTER, EXPERTS, TOP_K = 256, 128, 64, 6
COMPRESS_RATIOS = (0, 0, 4, 128)
"""Per layer: 0 is sliding window only, 4 adds compressed attention with an indexer, 128 without."""
HASH_LAYERS = 2
HEADS, HEAD_DIM, ROPE_DIM, Q_RANK, O_RANK, O_GROUPS = 8, 512, 64, 128, 128, 2
INDEX_HEADS, INDEX_DIM, INDEX_TOP_K = 8, 128, 512
STREAMS = 4
"""Residual streams of the hyper-connections."""
LEAD = 1.0
EXPERT_GAIN = 2.0


class V4Format(StrEnum):
    BF16 = "bf16"
    MXFP4 = "mxfp4"
    FP8 = "fp8"


def make_deepseek_v4(directory: Path, number_format: V4Format, *, seed: int) -> Path:
    """Write a DeepSeek-V4 checkpoint: 4 layers, 64 experts, top-6, one shared expert."""
    model = _Model(WeightSource(seed), number_format)
    model.outer()
    for layer, ratio in enumerate(COMPRESS_RATIOS):
        model.attention(f"layers.{layer}", ratio)
        model.experts(f"layers.{layer}", hashed=layer < HASH_LAYERS)
    return write_model(directory, model.tensors, _config(number_format))


class _Model:
    """Collects the tensors of one model, each in its released number format."""

    def __init__(self, source: WeightSource, number_format: V4Format) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._source = source
        self._format = number_format

    def outer(self) -> None:
        embedding = self._source.normal(VOCAB_SIZE, HIDDEN)
        self._bf16("embed", embedding)
        self._bf16("head", self._source.head(embedding, lead=LEAD))
        self._norm("norm", HIDDEN)
        self._hyper_connection("hc_head", outputs=STREAMS, scales=1)

    def attention(self, layer: str, ratio: int) -> None:
        prefix = f"{layer}.attn"
        self._norm(f"{layer}.attn_norm", HIDDEN)
        self._hyper_connection(f"{layer}.hc_attn", outputs=(2 + STREAMS) * STREAMS, scales=3)
        self._dense(f"{prefix}.wq_a", Q_RANK, HIDDEN)
        self._norm(f"{prefix}.q_norm", Q_RANK)
        self._dense(f"{prefix}.wq_b", HEADS * HEAD_DIM, Q_RANK)
        self._dense(f"{prefix}.wkv", HEAD_DIM, HIDDEN)
        self._norm(f"{prefix}.kv_norm", HEAD_DIM)
        self._dense(f"{prefix}.wo_a", O_GROUPS * O_RANK, HEADS * HEAD_DIM // O_GROUPS)
        self._dense(f"{prefix}.wo_b", HIDDEN, O_GROUPS * O_RANK)
        self.tensors[f"{prefix}.attn_sink"] = self._source.normal(HEADS)
        if ratio:
            self._compressor(f"{prefix}.compressor", ratio, HEAD_DIM)
        if ratio == 4:
            self._dense(f"{prefix}.indexer.wq_b", INDEX_HEADS * INDEX_DIM, Q_RANK)
            self._bf16(f"{prefix}.indexer.weights_proj", self._source.linear(INDEX_HEADS, HIDDEN))
            self._compressor(f"{prefix}.indexer.compressor", ratio, INDEX_DIM)

    def experts(self, layer: str, *, hashed: bool) -> None:
        prefix = f"{layer}.ffn"
        self._norm(f"{layer}.ffn_norm", HIDDEN)
        self._hyper_connection(f"{layer}.hc_ffn", outputs=(2 + STREAMS) * STREAMS, scales=3)
        self._bf16(f"{prefix}.gate", self._source.linear(EXPERTS, HIDDEN, gain=2.0))
        if hashed:
            rows = [self._source.permutation(EXPERTS)[:TOP_K] for _ in range(VOCAB_SIZE)]
            self.tensors[f"{prefix}.gate.tid2eid"] = torch.stack(rows)
        else:
            self.tensors[f"{prefix}.gate.bias"] = self._source.normal(EXPERTS, std=0.2)
        for name, rows_out, columns, gain in (
            ("w1", INTER, HIDDEN, 1.0),
            ("w2", HIDDEN, INTER, EXPERT_GAIN),
            ("w3", INTER, HIDDEN, 1.0),
        ):
            for expert in range(EXPERTS):
                self._expert(f"{prefix}.experts.{expert}.{name}", rows_out, columns, gain)
            self._dense(f"{prefix}.shared_experts.{name}", rows_out, columns, gain)

    def _bf16(self, name: str, weight: Tensor) -> None:
        self.tensors[f"{name}.weight"] = weight.to(torch.bfloat16)

    def _norm(self, name: str, size: int) -> None:
        self._bf16(name, self._source.norm(size))

    def _hyper_connection(self, name: str, *, outputs: int, scales: int) -> None:
        self.tensors[f"{name}_fn"] = self._source.normal(outputs, STREAMS * HIDDEN, std=0.02)
        self.tensors[f"{name}_base"] = self._source.normal(outputs, std=0.5)
        self.tensors[f"{name}_scale"] = self._source.norm(scales)

    def _compressor(self, name: str, ratio: int, head_dim: int) -> None:
        # Compression by 4 overlaps two neighbouring windows: twice the outputs.
        outputs = head_dim * (2 if ratio == 4 else 1)
        self.tensors[f"{name}.ape"] = self._source.normal(ratio, outputs, std=0.1)
        self._norm(f"{name}.norm", head_dim)
        self._bf16(f"{name}.wkv", self._source.linear(outputs, HIDDEN))
        self._bf16(f"{name}.wgate", self._source.linear(outputs, HIDDEN))

    def _dense(self, name: str, rows: int, columns: int, gain: float = 1.0) -> None:
        quantized = quantize_fp8_blocks(self._source.linear(rows, columns, gain))
        if self._format is V4Format.BF16:
            self._bf16(name, quantized.values)
            return
        self.tensors[f"{name}.weight"] = quantized.data
        released = self._format is V4Format.MXFP4
        scale = quantized.scale.to(torch.float8_e8m0fnu) if released else quantized.scale
        self.tensors[f"{name}.scale"] = scale

    def _expert(self, name: str, rows: int, columns: int, gain: float) -> None:
        mxfp4 = quantize_mxfp4(self._source.linear(rows, columns, gain))
        if self._format is V4Format.BF16:
            self._bf16(name, mxfp4.values)
            return
        stored = mxfp4
        if self._format is V4Format.FP8:
            stored = quantize_fp8_blocks(mxfp4.values)
            assert torch.equal(stored.values, mxfp4.values), "e4m3 holds every MXFP4 value here"
        self.tensors[f"{name}.weight"] = stored.data
        self.tensors[f"{name}.scale"] = stored.scale


def _config(number_format: V4Format) -> Config:
    config: Config = {
        "architectures": ["DeepseekV4ForCausalLM"],
        "model_type": "deepseek_v4",
        "vocab_size": VOCAB_SIZE,
        "hidden_size": HIDDEN,
        "num_hidden_layers": len(COMPRESS_RATIOS),
        "num_attention_heads": HEADS,
        "num_key_value_heads": 1,
        "head_dim": HEAD_DIM,
        "qk_rope_head_dim": ROPE_DIM,
        "q_lora_rank": Q_RANK,
        "o_lora_rank": O_RANK,
        "o_groups": O_GROUPS,
        "sliding_window": 128,
        # One entry more than layers: the released configs list the draft layer too.
        "compress_ratios": [*COMPRESS_RATIOS, 0],
        "compress_rope_theta": 160000,
        "index_n_heads": INDEX_HEADS,
        "index_head_dim": INDEX_DIM,
        "index_topk": INDEX_TOP_K,
        "moe_intermediate_size": INTER,
        "n_routed_experts": EXPERTS,
        "n_shared_experts": 1,
        "num_experts_per_tok": TOP_K,
        "num_hash_layers": HASH_LAYERS,
        "scoring_func": "sqrtsoftplus",
        "topk_method": "noaux_tc",
        "norm_topk_prob": True,
        "routed_scaling_factor": 1.5,
        "swiglu_limit": 10.0,
        "hidden_act": "silu",
        "hc_mult": STREAMS,
        "hc_sinkhorn_iters": 20,
        "hc_eps": 1e-6,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000,
        "rope_scaling": {
            "type": "yarn",
            "factor": 4,
            "original_max_position_embeddings": 1024,
            "beta_fast": 32,
            "beta_slow": 1,
        },
        "max_position_embeddings": 4096,
        "num_nextn_predict_layers": 0,
        "attention_bias": False,
        "tie_word_embeddings": False,
    }
    if number_format is not V4Format.BF16:
        released = number_format is V4Format.MXFP4
        quantization = {
            "quant_method": "fp8",
            "fmt": "e4m3",
            "activation_scheme": "dynamic",
            "weight_block_size": [FP8_BLOCK, FP8_BLOCK],
        }
        config["expert_dtype"] = "fp4" if released else "fp8"
        config["quantization_config"] = quantization | ({"scale_fmt": "ue8m0"} if released else {})
    return config
