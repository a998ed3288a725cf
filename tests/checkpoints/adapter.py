"""A LoRA adapter of a checkpoint's attention, and the checkpoint with it merged in."""

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from tests.checkpoints.weights import WeightSource
from tests.checkpoints.writer import write_json

MODULES = ("q_proj", "k_proj", "v_proj", "o_proj")
FUSED_MODULES = ["qkv_proj", "o_proj"]
"""As vLLM calls them."""
RANK = 8
GAIN = 0.5


def make_adapter(model: Path, adapter: Path, merged: Path, *, seed: int) -> None:
    """Write an adapter as PEFT does, and `model` with what it adds to its matrices."""
    source = WeightSource(seed)
    tensors = load_file(model / "model.safetensors")
    added = {}
    for name, weight in tensors.items():
        stem = name.removesuffix(".weight")
        if stem.split(".")[-1] not in MODULES:
            continue
        inner = source.linear(RANK, weight.shape[1]).to(torch.bfloat16)
        outer = source.linear(weight.shape[0], RANK, GAIN).to(torch.bfloat16)
        added[f"base_model.model.{stem}.lora_A.weight"] = inner
        added[f"base_model.model.{stem}.lora_B.weight"] = outer
        tensors[name] = (weight.float() + outer.float() @ inner.float()).to(torch.bfloat16)
    adapter.mkdir()
    save_file(added, adapter / "adapter_model.safetensors")
    write_json(
        adapter / "adapter_config.json",
        {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "target_modules": list(MODULES)},
    )
    shutil.copytree(model, merged)
    save_file(tensors, merged / "model.safetensors", metadata={"format": "pt"})
