"""The reader touches the tensors of the expert it is asked for, and no others."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from actors.experts.checkpoint import ExpertReader
from actors.experts.families import read_expert_spec
from actors.experts.refusal import ModelRefused
from tests.actors.experts.tiny import Shape, cases, write

SHAPE = Shape()
CASES = {case.name: case for case in cases(SHAPE)}


class CountingFile:
    """A safetensors file that notes the names and slices it is asked for."""

    def __init__(self, file: Path, asked: list[str]) -> None:
        self._file = safe_open(file, "pt")
        self._asked = asked

    def get_tensor(self, name: str) -> torch.Tensor:
        self._asked.append(name)
        return self._file.get_tensor(name)

    def get_slice(self, name: str) -> Any:
        return CountingSlice(self._file.get_slice(name), name, self._asked)


class CountingSlice:
    def __init__(self, inner: Any, name: str, asked: list[str]) -> None:
        self._inner, self._name, self._asked = inner, name, asked

    def __getitem__(self, key: slice) -> torch.Tensor:
        self._asked.append(f"{self._name}[{key.start}:{key.stop}]")
        return self._inner[key]


def counting_reader(name: str, path: Path) -> tuple[ExpertReader, list[str], list[Path]]:
    case = CASES[name]
    write(path, case.config, case.tensors(case.truth(SHAPE)), files=3)
    asked: list[str] = []
    opened: list[Path] = []

    def open_file(file: Path) -> CountingFile:
        opened.append(file)
        return CountingFile(file, asked)

    return ExpertReader(read_expert_spec(path), open_file), asked, opened


def test_reads_six_tensors_of_an_mxfp4_expert(tmp_path):
    reader, asked, opened = counting_reader("v4-mxfp4", tmp_path)
    reader.read(2, 1)
    stem = "layers.2.ffn.experts.1"
    assert sorted(asked) == [
        f"{stem}.{name}.{kind}" for name in ("w1", "w2", "w3") for kind in ("scale", "weight")
    ]
    reader.read(2, 1)
    assert len(opened) == len(set(opened))


def test_reads_one_slice_of_each_fused_tensor(tmp_path):
    reader, asked, _ = counting_reader("gpt-oss-mxfp4", tmp_path)
    reader.read(1, 3)
    assert {entry.rsplit("[")[-1] for entry in asked} == {"3:4]"}
    assert len(asked) == 6


def test_opens_nothing_before_it_is_asked(tmp_path):
    _, asked, opened = counting_reader("qwen3-bf16", tmp_path)
    assert asked == []
    assert opened == []


def test_refuses_an_expert_that_is_not_there(tmp_path):
    reader, _, _ = counting_reader("qwen3-bf16", tmp_path)
    with pytest.raises(ModelRefused, match=r"experts\.9\.gate_proj\.weight is missing"):
        reader.read(0, 9)
