"""The reader touches the tensors of the expert it is asked for, and no others."""

import os
import re
from pathlib import Path

import pytest
import torch

from actors.experts.checkpoint import AHEAD_BYTES, ExpertReader, SafetensorsFile
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

    def read_into(self, room: torch.Tensor, name: str, row: int | None) -> None:
        self._asked.append(name if row is None else f"{name}[{row}]")
        self._file.read_into(room, name, row)

    def expect(self, size: int, name: str, row: int | None) -> None:
        self._asked.append(f"soon {size} of {name if row is None else f'{name}[{row}]'}")
        self._file.expect(size, name, row)


def counting_reader(
    name: str, path: Path, ahead_bytes: int = AHEAD_BYTES
) -> tuple[ExpertReader, list[str], list[Path]]:
    case = CASES[name]
    write(path, case.config, case.tensors(case.truth(SHAPE)), files=3)
    asked: list[str] = []
    opened: list[Path] = []

    def open_file(file: Path) -> CountingFile:
        opened.append(file)
        return CountingFile(file, asked)

    return ExpertReader(read_expert_spec(path), open_file, ahead_bytes), asked, opened


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


def soon(asked: list[str]) -> list[str]:
    """Whose tensors were announced, in that order, each once; forgets what was asked for."""
    named = [entry for entry in asked if entry.startswith("soon")]
    asked.clear()
    assert len(named) == len(set(named))
    return list(dict.fromkeys(re.findall(r"experts\.(\d+)\.", "".join(named))))


def test_what_comes_next_is_announced_once(tmp_path):
    reader, asked, _ = counting_reader("v4-mxfp4", tmp_path)
    reader.expect(2, [1, 3, 0])
    first = reader.read(2, 1)
    sizes = [int(entry.split()[1]) for entry in asked if entry.startswith("soon")]
    assert sum(sizes) == 2 * first.nbytes
    assert soon(asked) == ["3", "0"]
    unannounced, _, _ = counting_reader("v4-mxfp4", tmp_path)
    assert torch.equal(reader.read(2, 3).w13, unannounced.read(2, 3).w13)
    assert soon(asked) == []


def test_no_more_is_announced_than_fits(tmp_path):
    reader, asked, _ = counting_reader("qwen3-bf16-fused", tmp_path, ahead_bytes=1)
    reader.expect(0, [2, 0, 1])
    for expert, following in ((2, "0]"), (0, "1]")):
        reader.read(0, expert)
        assert {entry.rsplit("[")[-1] for entry in asked if entry.startswith("soon")} == {following}
        asked.clear()


def test_other_experts_than_expected_are_read_all_the_same(tmp_path):
    reader, asked, _ = counting_reader("v4-mxfp4", tmp_path)
    reader.expect(2, [1, 3])
    reader.read(2, 0)
    assert soon(asked) == []
    reader.expect(2, [1, 99])
    reader.read(2, 1)
    with pytest.raises(ModelRefused, match="missing"):
        reader.read(2, 99)


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
