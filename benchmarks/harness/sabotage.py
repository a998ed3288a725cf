"""Checkpoints with a fault that a comparison has to notice: a test of the test."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

SCALE = 1.01
SWAPPED = (0, 1)

EXPERT = re.compile(r"\.experts\.(\d+)\.")
LAYER = re.compile(r"layers\.(\d+)\.")
DOWN = re.compile(r"\.experts\.(\d+\.)?(w2|down_proj)(\.weight|_bias|\.bias)?$")
DOWN_SCALE = re.compile(r"\.experts\.\d+\.w2\.scale$")

Tensors = dict[str, torch.Tensor]


def swap_experts(tensors: Tensors) -> Tensors:
    """In the last layer with experts, the first two have each other's weights."""
    layers = [int(found[1]) for name in tensors if (found := LAYER.search(name))
              if ".experts." in name]  # fmt: skip
    last = f"layers.{max(layers)}."
    faulty = dict(tensors)
    for name, values in tensors.items():
        if last not in name or ".experts." not in name:
            continue
        one = EXPERT.search(name)
        if one is None:  # all experts of the layer in one tensor
            faulty[name] = values.clone()
            faulty[name][list(SWAPPED)] = values[list(reversed(SWAPPED))]
        elif int(one[1]) in SWAPPED:
            other = SWAPPED[1 - SWAPPED.index(int(one[1]))]
            faulty[name] = tensors[name.replace(one[0], f".experts.{other}.")].clone()
    return faulty


def scale_experts(tensors: Tensors) -> Tensors:
    """All routed experts answer with `SCALE` times what they should.

    Raises:
        ValueError: weights whose scales are powers of two.
    """
    faulty = dict(tensors)
    wide = (torch.bfloat16, torch.float32)
    for name, values in tensors.items():
        scaled = DOWN.search(name) or DOWN_SCALE.search(name)
        if scaled and values.dtype in wide:
            faulty[name] = (values.float() * SCALE).to(values.dtype)
    if all(faulty[name] is values for name, values in tensors.items()):
        raise ValueError("this checkpoint's weights cannot be scaled by so little")
    return faulty


FAULTS: dict[str, Callable[[Tensors], Tensors]] = {
    "wrong_expert": swap_experts,
    "scale": scale_experts,
}


def write_faulty(fault: str, model: Path, folder: Path) -> Path:
    """Copy the checkpoint `model` to `folder` with a fault of `FAULTS`; returns it."""
    shutil.copytree(model, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    tensors: Tensors = {}
    files: dict[str, str] = {}
    for file in sorted(model.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118
                tensors[name], files[name] = opened.get_tensor(name), file.name
    faulty = FAULTS[fault](tensors)
    for file_name in set(files.values()):
        save_file({n: t for n, t in faulty.items() if files[n] == file_name}, folder / file_name)
    return folder
