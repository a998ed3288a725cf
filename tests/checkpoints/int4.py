"""A checkpoint's routed experts in INT4, as compressed-tensors writes them, and their bf16 twin.

The twin holds in bf16 exactly what the packed numbers stand for, so an engine without a kernel for
INT4 can serve it for comparison.
"""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.checkpoints.writer import write_json

GROUP = 32
ROUTED = ".experts."


def quantise_experts(model: Path, packed: Path, twin: Path) -> None:
    """Write `model` (bf16, experts one by one) with its experts packed, and as their twin."""
    tensors = load_file(model / "model.safetensors")
    packed_tensors, twin_tensors = {}, {}
    for name, tensor in tensors.items():
        if ROUTED not in name:
            packed_tensors[name] = twin_tensors[name] = tensor
            continue
        words, scale, values = quantise(tensor.float())
        stem = name.removesuffix(".weight")
        packed_tensors |= {
            f"{stem}.weight_packed": words,
            f"{stem}.weight_scale": scale,
            f"{stem}.weight_shape": torch.tensor(tensor.shape),
        }
        twin_tensors[name] = values
    for folder, kept in ((packed, packed_tensors), (twin, twin_tensors)):
        shutil.copytree(model, folder, dirs_exist_ok=True)
        (folder / "model.safetensors.index.json").unlink(missing_ok=True)
        save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((packed / "config.json").read_text())
    write_json(packed / "config.json", config | {"quantization_config": quantization_config()})


def quantise(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(words int32 [out, in / 8], scale bf16 [out, in / GROUP], values bf16 [out, in])."""
    groups = weight.unflatten(1, (-1, GROUP))
    scale = (groups.abs().amax(-1) / 7.5).to(torch.bfloat16)
    levels = (groups / scale.float().unsqueeze(-1)).round().clamp(-8, 7)
    values = (levels * scale.float().unsqueeze(-1)).flatten(1).to(torch.bfloat16)
    nibbles = (levels + 8).long().flatten(1).unflatten(1, (-1, 8))
    words = (nibbles << torch.arange(0, 32, 4)).sum(-1)
    return (words - ((words >> 31) << 32)).int(), scale, values


def quantization_config() -> dict[str, object]:
    weights = {
        "num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": GROUP,
        "dynamic": False, "observer": "minmax", "actorder": None,
    }  # fmt: skip
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {
            "group_0": {"targets": ["Linear"], "weights": weights, "input_activations": None}
        },
        "ignore": [
            "re:.*self_attn.*", "re:.*shared_experts.*", "re:.*mlp\\.gate$",
            "re:.*mlp\\.(gate|up|gate_up|down)_proj.*",
            "lm_head",
        ],
    }  # fmt: skip
