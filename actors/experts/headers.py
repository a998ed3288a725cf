"""What the safetensors files of a model directory hold, from their headers alone.

A safetensors file starts with its header's length (8 bytes, little endian) and a JSON object of
tensor name -> dtype, shape, offsets. Reading it touches a few megabytes of a terabyte checkpoint,
so a wrong or half-downloaded directory is refused before anything is loaded.
"""

import functools
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.experts.refusal import ModelRefused

INDEX_NAME = "model.safetensors.index.json"

# A longer header is a broken file: 61 layers x 384 experts in a single file need below 50 MB.
MAX_HEADER_BYTES = 1 << 28


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where one tensor lives. dtype is safetensors' name of it ("BF16", "F8_E4M3", "U8", ...)."""

    file: Path
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TensorIndex:
    """Every tensor of a checkpoint.

    weight_map: tensor name -> file name as the checkpoint's index says; empty without an index.
    """

    model_path: Path
    tensors: Mapping[str, TensorInfo]
    weight_map: Mapping[str, str]

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def find(self, name: str) -> TensorInfo:
        """The tensor called `name`; ModelRefused, naming the file it should be in, if missing."""
        info = self.tensors.get(name)
        if info is None:
            file = self.weight_map.get(name, "every safetensors file")
            raise ModelRefused(f"{self.model_path}: tensor {name} is missing from {file}")
        return info


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


def read_tensor_index(model_path: Path) -> TensorIndex:
    """Every tensor of a checkpoint, of the files its index names, or of all without an index."""
    index_file = model_path / INDEX_NAME
    weight_map = read_json(index_file).get("weight_map", {}) if index_file.exists() else {}
    if weight_map:
        files = [model_path / name for name in sorted(set(weight_map.values()))]
    else:
        files = sorted(model_path.glob("*.safetensors"))
    if not files:
        raise ModelRefused(
            f"{model_path} has no safetensors files: convert the checkpoint to safetensors"
        )
    return TensorIndex(model_path, _read_headers(tuple(_stamp(file) for file in files)), weight_map)


def _stamp(file: Path) -> tuple[Path, int, int]:
    """(file, size, modification time): the same as long as its header is."""
    try:
        status = file.stat()
    except FileNotFoundError:
        raise ModelRefused(f"{file} is missing: download the whole checkpoint") from None
    return file, status.st_size, status.st_mtime_ns


# Spec, check and reader ask one after another, and parsing the largest checkpoints takes a second.
@functools.lru_cache(maxsize=1)
def _read_headers(stamps: tuple[tuple[Path, int, int], ...]) -> Mapping[str, TensorInfo]:
    tensors: dict[str, TensorInfo] = {}
    for file, size, _ in stamps:
        tensors.update(_read_header(file, size))
    return tensors


def _read_header(file: Path, file_bytes: int) -> dict[str, TensorInfo]:
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > MAX_HEADER_BYTES:
                raise ValueError(f"its header claims {length} bytes")
            entries = json.loads(stream.read(length))
    except (ValueError, struct.error) as error:
        raise ModelRefused(f"{file} is not a safetensors file: {error}") from None
    entries.pop("__metadata__", None)
    data_bytes = max((entry["data_offsets"][1] for entry in entries.values()), default=0)
    expected_bytes = 8 + length + data_bytes
    if file_bytes < expected_bytes:
        raise ModelRefused(f"{file} has {file_bytes} of {expected_bytes} bytes: download it again")
    return {
        name: TensorInfo(file, entry["dtype"], tuple(entry["shape"]))
        for name, entry in entries.items()
    }
