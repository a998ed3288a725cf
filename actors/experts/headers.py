"""What the safetensors files of a model directory hold, from their headers alone.

A safetensors file starts with its header's length (8 bytes, little endian) and a JSON object of
tensor name -> dtype, shape, offsets. Reading it touches a few megabytes of a terabyte checkpoint,
so a wrong directory is refused before anything is loaded.
"""

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.experts.refusal import ModelRefused

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"

# A header longer than this is a broken file: the largest known one (61 layers x 384 experts in a
# single file) is below 50 MB.
MAX_HEADER_BYTES = 1 << 28


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where one tensor lives. dtype is safetensors' name of it ("BF16", "F8_E4M3", "U8", ...)."""

    file: Path
    dtype: str
    shape: tuple[int, ...]


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`; ModelRefused if it is missing or broken."""
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ModelRefused(
            f"{path.parent} has no {path.name}: give the directory of a Hugging Face checkpoint"
        ) from None
    except ValueError as error:
        raise ModelRefused(f"{path} is not valid JSON ({error}): download it again") from None
    if not isinstance(content, dict):
        raise ModelRefused(f"{path} holds no JSON object: download it again")
    return content


def read_header(file: Path) -> dict[str, TensorInfo]:
    """Tensors of one safetensors file."""
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > MAX_HEADER_BYTES:
                raise ValueError(f"a header of {length} bytes")
            entries = json.loads(stream.read(length))
    except FileNotFoundError:
        raise ModelRefused(f"{file} is missing: download the whole checkpoint") from None
    except (ValueError, struct.error) as error:
        raise ModelRefused(f"{file} is not a safetensors file ({error})") from None
    return {
        name: TensorInfo(file, entry["dtype"], tuple(entry["shape"]))
        for name, entry in entries.items()
        if name != "__metadata__"
    }


def read_tensor_index(model_path: Path) -> Mapping[str, TensorInfo]:
    """Every tensor of a checkpoint, of one file or of the files its index names."""
    index_file = model_path / INDEX_NAME
    if index_file.exists():
        names = sorted(set(read_json(index_file).get("weight_map", {}).values()))
        files = [model_path / name for name in names]
    else:
        files = sorted(model_path.glob("*.safetensors"))
    if not files:
        raise ModelRefused(
            f"{model_path} has no safetensors files: convert the checkpoint to safetensors"
        )
    tensors: dict[str, TensorInfo] = {}
    for file in files:
        tensors.update(read_header(file))
    return tensors
