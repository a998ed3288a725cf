"""The reader touches the tensors of the expert it is asked for, and no others."""

import os
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from actors.experts.checkpoint import ExpertReader, SafetensorsFile, Wanted
from actors.experts.families import read_expert_spec
from actors.experts.refusal import ModelRefused
from tests.actors.experts.tiny import Shape, cases, write

SHAPE = Shape()
CASES = {case.name: case for case in cases(SHAPE)}


class CountingFile:
    """A safetensors file that notes the tensors and rows it is asked for."""

    def __init__(self, file: Path, asked: list[str]) -> None:
        self._file = SafetensorsFile(file)
        self._asked = asked

    def begin(self, name: str) -> int:
        return self._file.begin(name)

    def read_into(self, wanted: Sequence[Wanted]) -> None:
        self._asked += [one.name if one.row is None else f"{one.name}[{one.row}]" for one in wanted]
        self._file.read_into(wanted)


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
    assert {entry.rsplit("[")[-1] for entry in asked} == {"3]"}
    assert len(asked) == 6


def test_opens_nothing_before_it_is_asked(tmp_path):
    _, asked, opened = counting_reader("qwen3-bf16", tmp_path)
    assert asked == []
    assert opened == []


def test_refuses_an_expert_that_is_not_there(tmp_path):
    reader, _, _ = counting_reader("qwen3-bf16", tmp_path)
    with pytest.raises(ModelRefused, match=r"experts\.9\.gate_proj\.weight is missing"):
        reader.read(0, 9)


def bytes_read() -> int:
    """By this process since it began, system calls' own count."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("rchar:")))


@pytest.mark.parametrize("name", ["qwen3-bf16", "v4-mxfp4", "gpt-oss-bf16"])
def test_reads_no_bytes_of_other_experts(name, tmp_path):
    reader, _, _ = counting_reader(name, tmp_path)
    wanted = reader.read(1, 2).nbytes  # opens the files, too
    before = bytes_read()
    reader.read(1, 2)
    assert wanted <= bytes_read() - before < wanted + 1000  # /proc/self/io has 100 bytes or so


def test_what_was_read_stays_when_the_next_is_read(tmp_path):
    reader, _, _ = counting_reader("qwen3-bf16-fused", tmp_path)
    first = reader.read(0, 0)
    before = first.map(torch.clone)
    reader.read(0, 1)
    for kept, copied in zip(first.tensors(), before.tensors(), strict=True):
        assert torch.equal(kept, copied)


def test_refuses_a_file_that_became_shorter(tmp_path):
    reader, _, opened = counting_reader("qwen3-bf16", tmp_path)
    reader.read(0, 0)
    for file in opened:
        os.truncate(file, 2000)
    with pytest.raises(ModelRefused, match=r"safetensors ends at 2000 bytes: download it again"):
        reader.read(0, 0)
