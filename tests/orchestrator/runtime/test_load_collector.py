"""Counts by expert outlive the shards that counted and the controller that added them up."""

import asyncio
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.control.lifecycle import Kind
from orchestrator.control.state import Intent, Place, State
from orchestrator.runtime.load_collector import LoadCollector
from orchestrator.runtime.load_file import load_file, read_ended, write_ended

SHAPE = (2, 3)


class NoProcesses:
    """Components of which none can be asked."""

    def handle(self, id: str, generation: int) -> None:
        return None

    said = handle


def counts(number: int) -> np.ndarray:
    return np.full(SHAPE, number, np.int64)


def collector(path: Path) -> LoadCollector:
    return LoadCollector(
        SHAPE, 1.0, lambda: 0.0, read_ended(path, SHAPE), partial(write_ended, path)
    )


def look(collected: LoadCollector, *shards: str) -> None:
    """A window in which the mesh has these shards."""
    places = {id: Place(id, Kind.SHARD, "cpu") for id in shards}
    nobody: Any = NoProcesses()
    asyncio.run(collected.collect(State(intent=Intent(places=places)), nobody))


def totals(collected: LoadCollector) -> dict[str, int]:
    return {id: int(total[0, 0]) for id, total in collected.totals.items()}


def test_windows_are_what_is_new_and_totals_outlive_a_process(tmp_path: Path) -> None:
    load = collector(tmp_path / "load.npz")
    assert int(load.take("a", 1, counts(5), 0.0)[0].sum()) == 30
    assert int(load.take("a", 1, counts(7), 0.0)[0].sum()) == 12
    assert int(load.take("a", 2, counts(1), 0.0)[0].sum()) == 6, "another process counts anew"
    load.take("b", 3, counts(4), 0.0)
    assert totals(load) == {"a": 8, "b": 4}


def test_the_next_controller_knows_what_ended_shards_counted(tmp_path: Path) -> None:
    path = load_file(tmp_path, "mesh")
    before = collector(path)
    before.take("a", 1, counts(7), 0.0)
    before.take("gone", 9, counts(2), 0.0)
    before.take("b", 3, counts(4), 0.0)
    look(before, "a", "b")
    before.take("a", 2, counts(1), 0.0)
    look(before, "a", "b")
    known = {"a": 8, "b": 4, "gone": 2}
    assert totals(before) == known
    after = collector(path)
    for id, incarnation, number in (("a", 2, 1), ("b", 3, 4)):  # those that live tell all again
        after.take(id, incarnation, counts(number), 0.0)
    assert totals(after) == known
    assert [file.name for file in tmp_path.iterdir()] == ["mesh.load.npz"]


@pytest.mark.parametrize("content", [b"", b"nonsense", b"PK\x03\x04 torn"])
def test_a_damaged_file_says_nothing(tmp_path: Path, content: bytes, caplog) -> None:
    path = tmp_path / "mesh.load.npz"
    path.write_bytes(content)
    assert read_ended(path, SHAPE) == {}
    assert "is not read" in caplog.text
    write_ended(path, {"a": counts(3)})
    assert read_ended(path, SHAPE)["a"].tolist() == counts(3).tolist()
    assert read_ended(path, (4, 4)) == {}, "of another model"
    write_ended(tmp_path / "nowhere" / "file.npz", {"a": counts(3)})
    assert "not kept" in caplog.text
