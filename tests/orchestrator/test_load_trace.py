"""Traces are read back as written, and what is no trace is named."""

import json
from pathlib import Path

import numpy as np
import pytest

from orchestrator.errors import UserError
from orchestrator.load_trace import LoadTrace, header_line, read_trace, window_line, write_npz
from placement.trace import Trace

COUNTS = np.arange(12, dtype=np.int64).reshape(2, 2, 3)
TRACE = Trace(COUNTS, np.array([0.0, 1.0]), np.array([1.0, 1.5]), ("", ""))


def write(path: Path) -> None:
    if path.suffix == ".npz":
        write_npz(path, LoadTrace("tiny", (1, 4), TRACE))
        return
    path.write_text(
        header_line("tiny", (1, 4), 3)
        + window_line(0.0, 1.0, COUNTS[0])
        + window_line(1.0, 1.5, COUNTS[1])
    )


@pytest.mark.parametrize("name", ["t.npz", "t.jsonl"])
def test_round_trip(tmp_path: Path, name: str) -> None:
    write(tmp_path / name)
    read = read_trace(tmp_path / name)
    assert (read.model, read.layers) == ("tiny", (1, 4))
    assert read.trace.window_s.tolist() == [1.0, 1.5]
    assert (read.trace.counts == COUNTS).all()
    assert (read.total() == COUNTS.sum(0)).all()


def test_cut_short_jsonl_keeps_its_whole_windows(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    write(path)
    path.write_text(path.read_text()[:-20])
    assert len(read_trace(path).trace.counts) == 1


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("t.npz", b"nonsense", "is not a load trace"),
        ("t.jsonl", b"", "it is empty"),
        ("t.jsonl", b'{"schema": 9}\n', "schema 9 is not supported"),
        ("t.jsonl", header_line("tiny", (0,), 2).encode(), "holds no window"),
        (
            "t.jsonl",
            header_line("tiny", (0,), 1).encode() + b'{"counts": [[-1]]}\n',
            "counts must be >= 0",
        ),
    ],
)
def test_refusals(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=said):
        read_trace(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist: record one with `expertmesh record`"):
        read_trace(tmp_path / "none.npz")


def test_no_pickle_is_opened(tmp_path: Path) -> None:
    path = tmp_path / "t.npz"
    np.savez(path, schema=np.array([1]), model=np.array([object()], dtype=object))
    with pytest.raises(UserError, match="is not a load trace"):
        read_trace(path)


def test_jsonl_lines_are_json() -> None:
    line = json.loads(window_line(1.0, 2.0, COUNTS[0]))
    assert line == {"start_s": 1.0, "window_s": 2.0, "counts": COUNTS[0].tolist()}
