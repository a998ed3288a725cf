"""Tiny random checkpoints of routed experts, written tensor by tensor.

Names and layouts are spelled out here on purpose, not taken from the tables under test. `write`
returns the truth: what the reader must give for every (layer, expert).
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from actors.experts.checkpoint import ExpertTensors
from actors.experts.formats.base import NumberFormat
from actors.experts.formats.bf16 import BF16
from actors.experts.formats.fp8_block128 import FP8_BLOCK128, Fp8Block128
from actors.experts.formats.fp8_rows import Fp8Rows
from actors.experts.formats.gptq_int4 import GPTQ_INT4
from actors.experts.formats.int4_group import INT4_GROUP32, Int4Group
from actors.experts.formats.int4_zeros import Int4Zeros
from actors.experts.formats.int8_rows import INT8_ROW, Int8Rows
from actors.experts.formats.mxfp4 import MXFP4
from actors.experts.formats.nvfp4 import Nvfp4

Tensors = dict[str, torch.Tensor]
Truth = dict[tuple[int, int], ExpertTensors]

FP8_CONFIG = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]}

# As llm-compressor writes it for W8A8.
INT8_CONFIG = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {
                "num_bits": 8,
                "type": "int",
                "symmetric": True,
                "strategy": "channel",
                "dynamic": False,
            },
            "input_activations": {
                "num_bits": 8,
                "type": "int",
                "symmetric": True,
                "strategy": "token",
                "dynamic": True,
            },
        }
    },
    "ignore": ["lm_head"],
}

GPTQ_CONFIG = {
    "quant_method": "gptq", "bits": 4, "group_size": 32, "sym": True, "desc_act": False,
    "checkpoint_format": "gptq",
}  # fmt: skip


def int4_config(**weights: object) -> dict[str, Any]:
    """As llm-compressor writes it for W4A16."""
    args = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "actorder": None}
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": args | weights}},
        "ignore": ["re:.*self_attn.*", "re:.*shared_experts.*", "lm_head"],
    }


@dataclass(frozen=True)
class Shape:
    layers: int = 3
    experts: int = 4
    top_k: int = 2
    hidden: int = 64
    inter: int = 32


def matrix(rows: int, columns: int, weight_format: NumberFormat, rng: torch.Generator) -> tuple:
    """(weight, scale or None) of one projection, in the native format, values around 0.1."""
    if weight_format == BF16:
        return (torch.randn(rows, columns, generator=rng) * 0.1).bfloat16(), None
    if isinstance(weight_format, Fp8Block128):
        weight = (torch.randn(rows, columns, generator=rng) * 100).to(torch.float8_e4m3fn)
        blocks = (-(-rows // 128), -(-columns // 128))
        return weight, torch.rand(blocks, generator=rng) * 0.001 + 0.0005
    if weight_format == MXFP4:
        weight = torch.randint(0, 256, (rows, columns // 2), dtype=torch.uint8, generator=rng)
        scale = torch.randint(121, 125, (rows, columns // 32), dtype=torch.uint8, generator=rng)
        return weight, scale
    return matrix_of_groups(rows, columns, weight_format, rng)


def matrix_of_groups(
    rows: int, columns: int, weight_format: NumberFormat, rng: torch.Generator
) -> tuple:
    """As `matrix`, for formats with scales of rows or parts of them."""
    if isinstance(weight_format, Int4Group):
        words = torch.randint(-(2**31), 2**31, (rows, columns // 8), generator=rng).int()
        scales = -(-columns // (weight_format.group or columns))
        scale = torch.rand((rows, scales), generator=rng) * 0.01 + 0.005
        if not isinstance(weight_format, Int4Zeros):
            return words, scale
        zeros = torch.randint(-8, 8, (rows, scales), generator=rng).float()
        return words, torch.stack([scale, zeros], -1)
    if isinstance(weight_format, Nvfp4):
        weight = torch.randint(0, 256, (rows, columns // 2), dtype=torch.uint8, generator=rng)
        return weight, torch.rand((rows, columns // 16), generator=rng) * 0.03 + 0.02
    if isinstance(weight_format, Fp8Rows):
        weight = (torch.randn(rows, columns, generator=rng) * 100).to(torch.float8_e4m3fn)
        return weight, torch.rand((rows, 1), generator=rng) * 0.001 + 0.0005
    assert isinstance(weight_format, Int8Rows)
    weight = torch.randint(-127, 128, (rows, columns), dtype=torch.int8, generator=rng)
    scales = -(-columns // (weight_format.group or columns))
    return weight, torch.rand((rows, scales), generator=rng) * 0.001 + 0.0005


def expert(
    shape: Shape, weight_format: NumberFormat, rng: torch.Generator, bias: bool = False
) -> ExpertTensors:
    gate, gate_scale = matrix(shape.inter, shape.hidden, weight_format, rng)
    up, up_scale = matrix(shape.inter, shape.hidden, weight_format, rng)
    down, down_scale = matrix(shape.hidden, shape.inter, weight_format, rng)
    return ExpertTensors(
        w13=torch.cat([gate, up]),
        w2=down,
        w13_scale=None if gate_scale is None else torch.cat([gate_scale, up_scale]),
        w2_scale=down_scale,
        w13_bias=torch.randn(2 * shape.inter, generator=rng).bfloat16() if bias else None,
        w2_bias=torch.randn(shape.hidden, generator=rng).bfloat16() if bias else None,
    )


def experts_of(
    layers: list[int], shape: Shape, weight_format: NumberFormat, bias: bool = False
) -> Truth:
    rng = torch.Generator().manual_seed(7)
    return {
        (layer, number): expert(shape, weight_format, rng, bias)
        for layer in layers
        for number in range(shape.experts)
    }


def one_by_one(
    truth: Truth,
    stem: str,
    names: tuple[str, str, str],
    scale: str = ".scale",
    store: Callable[[torch.Tensor], torch.Tensor] = lambda scale: scale,
) -> Tensors:
    """`stem` with {layer} and {expert}; names of gate, up, down; `store` makes a scale's dtype."""
    tensors: Tensors = {}
    for (layer, number), one in truth.items():
        base = stem.format(layer=layer, expert=number)
        gate, up = one.w13.chunk(2)
        for name, weight in zip(names, (gate, up, one.w2), strict=True):
            tensors[f"{base}.{name}.weight"] = weight.contiguous()
        if one.w13_scale is not None and one.w2_scale is not None:
            gate_scale, up_scale = one.w13_scale.chunk(2)
            for name, value in zip(names, (gate_scale, up_scale, one.w2_scale), strict=True):
                tensors[f"{base}.{name}{scale}"] = store(value.contiguous())
    return tensors


def turned(tensors: Tensors) -> Tensors:
    """As GPTQ stores packed weights and their scales."""
    return {
        name.replace(".weight", ".qweight"): tensor.T.contiguous()
        for name, tensor in tensors.items()
    }


def packed(tensors: Tensors) -> Tensors:
    """With the names that compressed-tensors has for packed weights."""
    return {
        f"{name}_packed" if name.endswith(".weight") else name: tensor
        for name, tensor in tensors.items()
    }


def fused(truth: Truth) -> Tensors:
    """As transformers 5 holds all families but gpt-oss: [E, 2I, H] and [E, H, I]."""
    tensors: Tensors = {}
    for layer in sorted({layer for layer, _ in truth}):
        base = f"model.layers.{layer}.mlp.experts"
        ones = [one for (at, _), one in truth.items() if at == layer]
        tensors[f"{base}.gate_up_proj"] = torch.stack([one.w13 for one in ones])
        tensors[f"{base}.down_proj"] = torch.stack([one.w2 for one in ones])
    return tensors


def alternating(tensor: torch.Tensor) -> torch.Tensor:
    """Rows [gate; up] -> gate, up, gate, up, ..."""
    gate, up = tensor.chunk(2)
    return torch.stack([gate, up], 1).flatten(0, 1)


def gpt_oss(truth: Truth) -> Tensors:
    tensors: Tensors = {}
    for layer in sorted({layer for layer, _ in truth}):
        base = f"model.layers.{layer}.mlp.experts"
        ones = [one for (at, _), one in truth.items() if at == layer]
        gate_up = torch.stack([alternating(one.w13) for one in ones])
        down = torch.stack([one.w2 for one in ones])
        if ones[0].w13_scale is None:
            tensors[f"{base}.gate_up_proj"] = gate_up.transpose(1, 2).contiguous()
            tensors[f"{base}.down_proj"] = down.transpose(1, 2).contiguous()
        else:
            tensors[f"{base}.gate_up_proj_blocks"] = gate_up.unflatten(2, (-1, 16))
            tensors[f"{base}.down_proj_blocks"] = down.unflatten(2, (-1, 16))
            tensors[f"{base}.gate_up_proj_scales"] = torch.stack(
                [alternating(one.w13_scale) for one in ones]
            )
            tensors[f"{base}.down_proj_scales"] = torch.stack([one.w2_scale for one in ones])
        tensors[f"{base}.gate_up_proj_bias"] = torch.stack(
            [alternating(one.w13_bias) for one in ones]
        )
        tensors[f"{base}.down_proj_bias"] = torch.stack([one.w2_bias for one in ones])
    return tensors


def write(path: Path, config: dict[str, Any], tensors: Tensors, files: int = 1) -> None:
    """A model directory; with an index when there are several files."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    names = sorted(tensors)
    if files == 1:
        save_file(tensors, path / "model.safetensors")
        return
    weight_map = {}
    for number in range(files):
        part = names[number::files]
        file = f"model-{number + 1:05d}-of-{files:05d}.safetensors"
        save_file({name: tensors[name] for name in part}, path / file)
        weight_map |= dict.fromkeys(part, file)
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def qwen3_config(shape: Shape) -> dict[str, Any]:
    return {
        "architectures": ["Qwen3MoeForCausalLM"],
        "num_hidden_layers": shape.layers,
        "num_experts": shape.experts,
        "num_experts_per_tok": shape.top_k,
        "hidden_size": shape.hidden,
        "moe_intermediate_size": shape.inter,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }


def mixtral_config(shape: Shape) -> dict[str, Any]:
    return {
        "architectures": ["MixtralForCausalLM"],
        "num_hidden_layers": shape.layers,
        "num_local_experts": shape.experts,
        "num_experts_per_tok": shape.top_k,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.inter,
    }


def deepseek_config(shape: Shape, version: int) -> dict[str, Any]:
    return {
        "architectures": [f"DeepseekV{version}ForCausalLM"],
        "num_hidden_layers": shape.layers,
        "n_routed_experts": shape.experts,
        "num_experts_per_tok": shape.top_k,
        "hidden_size": shape.hidden,
        "moe_intermediate_size": shape.inter,
        **({"first_k_dense_replace": 1, "moe_layer_freq": 1} if version == 3 else {}),
        **({"swiglu_limit": 10.0} if version == 4 else {}),
    }


def gpt_oss_config(shape: Shape) -> dict[str, Any]:
    return {
        "architectures": ["GptOssForCausalLM"],
        "num_hidden_layers": shape.layers,
        "num_local_experts": shape.experts,
        "num_experts_per_tok": shape.top_k,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.inter,
        "swiglu_limit": 7.0,
    }


PROJ = ("gate_proj", "up_proj", "down_proj")
W123 = ("w1", "w3", "w2")


@dataclass(frozen=True)
class Case:
    """One way one family is stored."""

    name: str
    config: dict[str, Any]
    layers: list[int]
    weight_format: NumberFormat
    tensors: Callable[[Truth], Tensors]
    bias: bool = False

    def truth(self, shape: Shape) -> Truth:
        return experts_of(self.layers, shape, self.weight_format, self.bias)


def e8m0(scale: torch.Tensor) -> torch.Tensor:
    return scale.view(torch.float8_e8m0fnu)


def int8(tensors: Tensors) -> Tensors:
    """MXFP4 weights as DeepSeek-V4 stores them: signed bytes."""
    return {
        name: tensor.view(torch.int8) if name.endswith(".weight") else tensor
        for name, tensor in tensors.items()
    }


def cases(shape: Shape) -> list[Case]:
    every = list(range(shape.layers))
    bf16, fp8, mxfp4 = BF16, FP8_BLOCK128, MXFP4
    mlp = "model.layers.{layer}.mlp.experts.{expert}"
    ffn = "layers.{layer}.ffn.experts.{expert}"
    inv = ".weight_scale_inv"
    qwen3, mixtral = qwen3_config(shape), mixtral_config(shape)
    v3, v4, oss = deepseek_config(shape, 3), deepseek_config(shape, 4), gpt_oss_config(shape)
    quantized = {"quantization_config": FP8_CONFIG}

    def proj(truth: Truth) -> Tensors:
        return one_by_one(truth, mlp, PROJ, inv)

    def v4_named(truth: Truth) -> Tensors:
        return one_by_one(truth, ffn, W123)

    return [
        Case("qwen3-bf16", qwen3, every, bf16, proj),
        Case("qwen3-bf16-fused", qwen3, every, bf16, fused),
        Case("qwen3-fp8", qwen3 | quantized, every, fp8, proj),
        Case(
            "qwen3-int8",
            qwen3 | {"quantization_config": INT8_CONFIG},
            every,
            INT8_ROW,
            lambda truth: one_by_one(truth, mlp, PROJ, ".weight_scale"),
        ),
        Case(
            "v3-int4",
            v3 | {"quantization_config": int4_config(group_size=32)},
            every[1:],
            INT4_GROUP32,
            lambda truth: packed(one_by_one(truth, mlp, PROJ, ".weight_scale")),
        ),
        Case(
            "qwen3-gptq",
            qwen3 | {"quantization_config": GPTQ_CONFIG},
            every,
            GPTQ_INT4[0],
            lambda truth: turned(one_by_one(truth, mlp, PROJ, ".scales")),
        ),
        Case(
            "mixtral-bf16",
            mixtral,
            every,
            bf16,
            lambda truth: one_by_one(
                truth, "model.layers.{layer}.block_sparse_moe.experts.{expert}", W123
            ),
        ),
        Case("mixtral-bf16-fused", mixtral, every, bf16, fused),
        Case("v3-bf16", v3, every[1:], bf16, proj),
        Case("v3-bf16-fused", v3, every[1:], bf16, fused),
        Case("v3-fp8", v3 | quantized, every[1:], fp8, proj),
        Case("v4-bf16", v4, every, bf16, v4_named),
        Case(
            "v4-bf16-model-prefix",
            v4,
            every,
            bf16,
            lambda truth: one_by_one(truth, "model." + ffn, W123),
        ),
        Case("v4-bf16-fused", v4, every, bf16, fused),
        Case("v4-fp8", v4 | quantized, every, fp8, v4_named),
        Case(
            "v4-mxfp4",
            v4 | quantized,
            every,
            mxfp4,
            lambda truth: int8(one_by_one(truth, ffn, W123, store=e8m0)),
        ),
        Case("gpt-oss-bf16", oss, every, bf16, gpt_oss, bias=True),
        Case(
            "gpt-oss-mxfp4",
            oss | {"quantization_config": {"quant_method": "mxfp4"}},
            every,
            mxfp4,
            gpt_oss,
            bias=True,
        ),
    ]
