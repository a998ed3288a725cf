"""A checkpoint's routed experts in a quantised format, and their bf16 twin.

compressed-tensors' formats are written by that library, GPTQ and AWQ with vLLM's packing, and what
they stand for is what these say. The twin holds it in bf16, so an engine without a kernel for the
format can serve it for comparison.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.checkpoints.writer import write_json

GROUP = 32
ROUTED = ".experts."
PROJECTION = "_proj.weight"
LEFT_OUT = [
    "re:.*self_attn.*", "re:.*shared_experts.*", "re:.*mlp\\.gate$",
    "re:.*mlp\\.(gate|up|gate_up|down)_proj.*", "lm_head",
]  # fmt: skip

Stored = tuple[dict[str, Tensor], Tensor]
"""(suffix of its name -> tensor, the fp32 values [out, in] they stand for)."""


@dataclass(frozen=True, slots=True)
class Format:
    """config: `quantization_config`, of which experts alone are quantised. write: [out, in]."""

    config: Mapping[str, Any]
    write: Callable[[Tensor], Stored]


def quantise_experts(
    model: Path, quantised: Path, twin: Path, name: str, *, attention: bool = False
) -> None:
    """Write `model` (bf16, experts one by one) with its experts in `FORMATS[name]`, and as their
    twin. attention: its projections, too."""
    tensors = load_file(model / "model.safetensors")
    kept, values = {}, {}
    for tensor_name, tensor in tensors.items():
        if not (ROUTED in tensor_name or (attention and PROJECTION in tensor_name)):
            kept[tensor_name] = values[tensor_name] = tensor
            continue
        stored, exact = FORMATS[name].write(tensor.float())
        stem = tensor_name.removesuffix(".weight")
        kept |= {f"{stem}.{suffix}": one.contiguous() for suffix, one in stored.items()}
        values[tensor_name] = exact.to(torch.bfloat16)
    for folder, content in ((quantised, kept), (twin, values)):
        shutil.copytree(model, folder, dirs_exist_ok=True)
        (folder / "model.safetensors.index.json").unlink(missing_ok=True)
        save_file(content, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((quantised / "config.json").read_text())
    quantisation = dict(FORMATS[name].config)
    if attention and "ignore" in quantisation:
        quantisation["ignore"] = [one for one in quantisation["ignore"] if "attn" not in one]
    write_json(quantised / "config.json", config | {"quantization_config": quantisation})


def compressed(name: str, inputs: dict[str, Any] | None = None, **weights: Any) -> Format:
    """A format of compressed-tensors. name: `format` in the config."""
    weights = {"symmetric": True, "dynamic": False} | weights
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs}
    config = {
        "quant_method": "compressed-tensors",
        "format": name,
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": LEFT_OUT,
    }
    return Format(config, lambda weight: _compress(weight, name, weights))


def _compress(weight: Tensor, name: str, weights: dict[str, Any]) -> Stored:
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam

    arguments = QuantizationArgs(**weights)
    scheme = QuantizationScheme(targets=["Linear"], weights=arguments)
    parts = weight.unflatten(1, (-1, arguments.group_size or weight.shape[1]))
    if arguments.strategy == "tensor":
        parts = weight.reshape(1, 1, -1)
    if arguments.block_structure:
        parts = blocks_of(weight, *arguments.block_structure)
    low, high = parts.amin(-1), parts.amax(-1)
    whole = generate_gparam(low.amin(), high.amax()) if name.startswith("nvfp4") else None
    scale, zero = calculate_qparams(low, high, arguments, whole)
    state = {"weight": weight, "weight_scale": scale, "weight_zero_point": zero}
    if whole is not None:
        state["weight_global_scale"] = whole
    elif arguments.strategy == "tensor":
        state["weight_scale"], state["weight_zero_point"] = scale.view(1), zero.view(1)
    compressor = BaseCompressor.get_value_from_registry(name)
    with torch.compiler.set_stance("force_eager"):  # compiling its rounding would take seconds
        stored = compressor.compress(state, scheme)
    if whole is not None:
        return stored, _nvfp4_values(stored)
    return stored, compressor.decompress(stored, scheme)["weight"].float()


def blocks_of(weight: Tensor, rows: int, columns: int) -> Tensor:
    """[blocks above each other, beside each other, values]; the last ones are filled with zeros."""
    room = (0, -weight.shape[1] % columns, 0, -weight.shape[0] % rows)
    padded = torch.nn.functional.pad(weight, room)
    blocks = padded.unflatten(1, (-1, columns)).unflatten(0, (-1, rows))
    return blocks.transpose(1, 2).flatten(2)


def _nvfp4_values(stored: Mapping[str, Tensor]) -> Tensor:
    """As the library's `decompress`, which rounds to bf16 in between."""
    from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8
    from compressed_tensors.quantization.lifecycle.forward import dequantize

    packed = stored["weight_packed"]
    values = unpack_fp4_from_uint8(packed, len(packed), 2 * packed.shape[1], torch.float32)
    return dequantize(
        x_q=values,
        scale=stored["weight_scale"].float(),
        global_scale=stored["weight_global_scale"],
        dtype=torch.float32,
    )


def _modelopt(weight: Tensor) -> Stored:
    stored, values = FORMATS["nvfp4"].write(weight)
    return {
        "weight": stored["weight_packed"],
        "weight_scale": stored["weight_scale"],
        "weight_scale_2": (1 / stored["weight_global_scale"]).squeeze(),
        "input_scale": torch.tensor(0.5),
    }, values


def _fp8_whole(weight: Tensor) -> Stored:
    """With a number without dimensions, and one for rows."""
    scale = weight.abs().max() / 448
    codes = (weight / scale).to(torch.float8_e4m3fn)
    return {
        "weight": codes, "weight_scale": scale, "input_scale": torch.tensor(0.5)
    }, codes.float() * scale  # fmt: skip


@dataclass(frozen=True, slots=True)
class Levels:
    """codes: 0 to 15 [in, out]; scale fp16, zero 0 to 15: [groups, out]. values: [out, in]."""

    codes: Tensor
    scale: Tensor
    zero: Tensor
    values: Tensor


def levels(weight: Tensor, *, symmetric: bool = False) -> Levels:
    groups = weight.T.unflatten(0, (-1, GROUP))
    if symmetric:
        scale, zero = groups.abs().amax(1) / 7.5, torch.full_like(groups[:, 0], 8)
    else:
        low, high = groups.amin(1).clamp(max=0), groups.amax(1).clamp(min=0)
        scale = (high - low) / 15
        zero = (-low / scale).round().clamp(1, 15)  # gptq cannot store 0
    scale = scale.half()
    codes = (groups / scale.float().unsqueeze(1)).round() + zero.unsqueeze(1)
    codes = codes.clamp(0, 15)
    values = (codes - zero.unsqueeze(1)) * scale.float().unsqueeze(1)
    return Levels(codes.flatten(0, 1).int(), scale, zero.int(), values.flatten(0, 1).T)


def _gptq(weight: Tensor, *, symmetric: bool, subtracted: int) -> Stored:
    from vllm.model_executor.layers.quantization.utils.quant_utils import gptq_pack, pack_cols

    found = levels(weight, symmetric=symmetric)
    return {
        "qweight": gptq_pack(found.codes, 4, *found.codes.shape),
        "qzeros": pack_cols(found.zero - subtracted, 4, *found.zero.shape),
        "scales": found.scale,
        "g_idx": torch.arange(weight.shape[1], dtype=torch.int32) // GROUP,
    }, found.values


def gptq(*, symmetric: bool, subtracted: int = 1, **config: Any) -> Format:
    entries = {
        "quant_method": "gptq", "bits": 4, "group_size": GROUP, "sym": symmetric, "desc_act": False,
        "dynamic": {f"-:.*{part}.*": {} for part in DENSE},
    }  # fmt: skip
    return Format(
        entries | config, lambda one: _gptq(one, symmetric=symmetric, subtracted=subtracted)
    )


def _awq(weight: Tensor) -> Stored:
    from vllm.model_executor.layers.quantization.utils.quant_utils import awq_pack

    found = levels(weight)
    return {
        "qweight": awq_pack(found.codes, 4, *found.codes.shape),
        "qzeros": awq_pack(found.zero, 4, *found.zero.shape),
        "scales": found.scale,
    }, found.values


DENSE = ("self_attn", "shared_experts", "layers.0.mlp")
AWQ_CONFIG = {
    "quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm",
    "modules_to_not_convert": [*DENSE, "mlp.gate"],
}  # fmt: skip
MODELOPT_CONFIG = {
    "quant_method": "modelopt", "quant_algo": "NVFP4",
    "ignore": ["*self_attn*", "*shared_experts*", "*layers.0.mlp*", "*mlp.gate", "lm_head"],
}  # fmt: skip
PACKED = "pack-quantized"
TOKEN_FP8 = {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True}
TENSOR_FP8 = {"num_bits": 8, "type": "float", "strategy": "tensor"}
TOKEN_INT8 = {"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True}
INT4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": GROUP}

FORMATS: dict[str, Format] = {
    "fp8-rows": compressed(
        "float-quantized", TOKEN_FP8, num_bits=8, type="float", strategy="channel"
    ),
    "fp8-blocks": compressed(
        "float-quantized",
        TOKEN_FP8,
        num_bits=8,
        type="float",
        strategy="block",
        block_structure=[128, 128],
    ),
    "fp8-whole": compressed("float-quantized", TENSOR_FP8, **TENSOR_FP8),
    "fp8-whole-plain": Format(
        {"quant_method": "fp8", "activation_scheme": "static", "ignored_layers": LEFT_OUT},
        _fp8_whole,
    ),
    "int8-rows": compressed(
        "int-quantized", TOKEN_INT8, num_bits=8, type="int", strategy="channel"
    ),
    "w4a8": compressed("int-quantized", TOKEN_INT8, **INT4),
    "int4": compressed(PACKED, **INT4),
    "int4-zeros": compressed(PACKED, **INT4 | {"symmetric": False}),
    "nvfp4": compressed(
        "nvfp4-pack-quantized",
        num_bits=4,
        type="float",
        strategy="tensor_group",
        group_size=16,
        scale_dtype="torch.float8_e4m3fn",
    ),
    "nvfp4-modelopt": Format(MODELOPT_CONFIG, _modelopt),
    "gptq": gptq(symmetric=True),
    "gptq-zeros": gptq(symmetric=False),
    "gptq-zeros-v2": gptq(symmetric=False, subtracted=0, checkpoint_format="gptq_v2"),
    "awq": Format(AWQ_CONFIG, _awq),
}
