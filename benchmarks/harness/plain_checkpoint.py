"""A quantised checkpoint written out in fp32, by definition of its formats and in plain torch.

Shares no code with the shards or vLLM: it is what the reference of `benchmarks.correctness` reads.
"""

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""Values of a four-bit code without its sign bit, which is the highest one."""


def is_quantised(model: Path) -> bool:
    config = json.loads((model / "config.json").read_text())
    return config.get("quantization_config") is not None


def write_plain(model: Path, folder: Path) -> Path:
    """Copy the checkpoint `model` to `folder` with all weights as fp32 values; returns it."""
    folder.mkdir(parents=True)
    config = json.loads((model / "config.json").read_text())
    for quantised in ("quantization_config", "expert_dtype"):
        config.pop(quantised, None)
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {}
    for file in sorted(model.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            tensors.update({name: opened.get_tensor(name) for name in opened.keys()})  # noqa: SIM118
    plain = {}
    for name, values in tensors.items():
        scale = tensors.get(name.removesuffix(".weight") + ".scale")
        if name.endswith(".weight") and scale is not None:
            plain[name] = dequantise(values, scale)
        elif not (name.endswith(".scale") and name.removesuffix(".scale") + ".weight" in tensors):
            plain[name] = values
    save_file(plain, folder / "model.safetensors")
    return folder


def dequantise(values: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """fp32 [R, C]. values: e4m3 [R, C], or two e2m1 codes a byte [R, C / 2], the low one first.

    scale: one for each block of 128 x 128 values, or of 1 x 32; e8m0 or fp32.
    """
    if scale.dtype == torch.float8_e8m0fnu:
        scale = torch.exp2(scale.view(torch.uint8).float() - 127)
    if values.dtype == torch.float8_e4m3fn:
        wide = values.float()
        block = (128, 128)
    else:
        codes = values.view(torch.uint8)
        codes = torch.stack([codes & 15, codes >> 4], dim=2).flatten(1).long()
        wide = torch.tensor(E2M1)[codes & 7] * torch.where(codes >= 8, -1.0, 1.0)
        block = (1, 32)
    rows, columns = wide.shape
    spread = scale.float().repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
    return wide * spread[:rows, :columns]
