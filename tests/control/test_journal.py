"""The journal: what was written is what is read, whole steps only, one holder at a time."""

import os
import signal
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.api.models import EventView
from orchestrator.control.actions import Note
from orchestrator.control.journal import (
    SCHEMA_VERSION,
    DamagedJournalError,
    Journal,
    JournalError,
    set_aside,
)
from orchestrator.control.keys import EXPERT, PlacedKey
from orchestrator.control.lifecycle import Kind, Phase, TransactionKind, Wanted
from orchestrator.control.state import (
    Batch,
    Epoch,
    EpochId,
    Intent,
    Place,
    Rolling,
    Rule,
    Stray,
    Transaction,
)

KEYS = frozenset(PlacedKey(EXPERT, layer, expert) for layer in range(2) for expert in range(3))
SOME = frozenset({PlacedKey(EXPERT, 1, 2)})
INTENT = Intent(
    term=3,
    fingerprint="f00d",
    keys=KEYS,
    places={
        "cpu-0": Place("cpu-0", Kind.SHARD, "cpu", 2, Wanted.STOP, 1, "worn out", True, True),
        "engine-0": Place("engine-0", Kind.ENGINE, "engine", 1),
    },
    planned={"cpu-0": KEYS},
    planned_for=frozenset({"cpu-0"}),
    strays=frozenset({Stray("cpu-0", Kind.SHARD, 1)}),
    epoch=Epoch(EpochId(3, 9), {"cpu-0": KEYS}, {"cpu-0": 2**63 + 7}, {"cpu-0": 0.5}),
    transaction=Transaction(
        4,
        TransactionKind.REBALANCE,
        Phase.PREPARING,
        (Batch({"cpu-0": SOME}, {}, 1.5),),
        {"cpu-0": KEYS},
        "because",
        frozenset({"cpu-0"}),
        bytes=7,
        gain=0.25,
    ),
    transactions=4,
    orders=11,
    cordoned_nodes=frozenset({"node-1"}),
    rules=frozenset({Rule(PlacedKey(EXPERT, 1, 2), frozenset({"cpu"}), frozenset({"gpu", "npu"}))}),
    rolling=Rolling("cpu", ("cpu-1",), "cpu-0", 2),
)


def note(text: str) -> Note:
    return Note(id=text, step="ready", reason=text, subject="cpu-0", figures={"bytes": 2.0})


def test_what_was_written_is_read(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "mesh")
    assert journal.read() is None
    journal.write(INTENT, [note("first")], 1.0)
    journal.close()
    again = Journal(tmp_path, "mesh")
    assert again.read() == INTENT
    assert [line["reason"] for line in again.history()] == ["first"]
    again.close()


def test_only_changed_parts_are_written(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "mesh")
    journal.write(INTENT, [], 0.0)
    seen: list[str] = []
    journal._connection.set_trace_callback(seen.append)
    journal.write(replace(INTENT, orders=12), [], 0.0)
    written = [text for text in seen if text.startswith("INSERT OR REPLACE")]
    assert len(written) == 1
    assert "orders" in written[0]
    journal.close()


def test_a_second_controller_is_refused_and_the_lock_goes_with_the_process(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "mesh")
    with pytest.raises(JournalError, match=f"another controller .process {os.getpid()}."):
        Journal(tmp_path, "mesh")
    Journal(tmp_path, "other").close()
    journal.close()
    Journal(tmp_path, "mesh").close()


def test_history_is_read_from_a_number_on_and_from_its_end(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "mesh")
    journal.write(INTENT, [note(str(number)) for number in range(5)], 0.0)
    assert [line["reason"] for line in journal.history(after=3)] == ["3", "4"]
    assert [line["reason"] for line in journal.history(after=-2)] == ["3", "4"]
    (last,) = [EventView.model_validate(line) for line in journal.history(after=4)]
    assert (last.number, last.subject, last.figures) == (5, "cpu-0", {"bytes": 2.0})
    journal.close()


def test_an_older_schema_is_migrated_and_a_newer_one_refused(tmp_path: Path) -> None:
    sqlite3.connect(tmp_path / "mesh.journal").close()  # version 0: empty
    journal = Journal(tmp_path, "mesh")
    (version,) = journal._connection.execute("PRAGMA user_version").fetchone()
    assert version == SCHEMA_VERSION
    journal._connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    journal.close()
    with pytest.raises(JournalError, match="use the version of ExpertMesh that wrote it"):
        Journal(tmp_path, "mesh")


def test_what_version_1_wrote_is_read(tmp_path: Path) -> None:
    """Version 1 had no rules, cordoned nodes or rolling restarts."""
    journal = Journal(tmp_path, "mesh")
    journal.write(INTENT, [note("kept")], 1.0)
    connection = journal._connection
    connection.execute("DELETE FROM intent WHERE part IN ('cordoned_nodes', 'rules', 'rolling')")
    connection.execute("PRAGMA user_version = 1")
    journal.close()
    again = Journal(tmp_path, "mesh")
    assert again.read() == replace(
        INTENT, cordoned_nodes=frozenset(), rules=frozenset(), rolling=None
    )
    assert [line["reason"] for line in again.history()] == ["kept"]
    again.write(INTENT, [], 2.0)
    again.close()
    last = Journal(tmp_path, "mesh")
    assert last.read() == INTENT
    last.close()


def test_an_empty_journal_of_version_1_stays_empty(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "mesh")
    journal._connection.execute("PRAGMA user_version = 1")
    journal.close()
    again = Journal(tmp_path, "mesh")
    assert again.read() is None
    again.close()


def test_a_damaged_file_is_refused_in_one_line(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "mesh")
    journal.write(INTENT, [note("x" * 4000) for _ in range(50)], 0.0)
    journal.close()
    path = tmp_path / "mesh.journal"
    damage = b"SQLite format 3\0" + os.urandom(8192)
    path.write_bytes(damage)
    with pytest.raises(DamagedJournalError, match="move it away") as caught:
        Journal(tmp_path, "mesh")
    assert "\n" not in str(caught.value)
    aside = set_aside(tmp_path, "mesh")
    assert aside.read_bytes() == damage
    again = Journal(tmp_path, "mesh")
    assert again.read() is None
    again.close()
    path.write_bytes(damage)
    assert set_aside(tmp_path, "mesh") != aside, "what was kept before is kept"


def test_a_part_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "mesh")
    journal.write(INTENT, [], 0.0)
    journal._connection.execute("UPDATE intent SET body = '{}' WHERE part = 'term'")
    with pytest.raises(DamagedJournalError, match="term"):
        journal.read()
    journal.close()


def test_a_journal_without_one_of_its_parts_is_refused(tmp_path: Path) -> None:
    """Else what is missing would be as in a mesh that never began, and its processes be ended."""
    journal = Journal(tmp_path, "mesh")
    journal.write(INTENT, [], 0.0)
    journal._connection.execute("DELETE FROM intent WHERE part = 'places'")
    with pytest.raises(DamagedJournalError, match="there is no 'places' in it"):
        journal.read()
    journal.close()


def test_a_full_disk_refuses_the_step_and_keeps_what_was_there(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "mesh")
    journal.write(INTENT, [], 0.0)
    (pages,) = journal._connection.execute("PRAGMA page_count").fetchone()
    journal._connection.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(JournalError, match="disk is full"):
        journal.write(replace(INTENT, orders=99), [note("x" * 100_000)], 0.0)
    assert journal.read() == INTENT
    journal._connection.execute("PRAGMA max_page_count = 100000")
    journal.write(replace(INTENT, orders=99), [note("x" * 100_000)], 0.0)
    assert journal.read() == replace(INTENT, orders=99)
    journal.close()


WRITER = """
import sys
from dataclasses import replace
from pathlib import Path
from orchestrator.control.journal import Journal
from tests.control.test_journal import INTENT, note
journal = Journal(Path(sys.argv[1]), "mesh")
number = journal.read().orders if journal.read() else 0
while True:
    number += 1
    journal.write(replace(INTENT, orders=number, transactions=number), [note(str(number))], 0.0)
    print(number, flush=True)
"""


def test_after_sigkill_the_last_step_that_was_told_is_there_and_none_is_half(
    tmp_path: Path,
) -> None:
    for told_before_kill in (1, 7, 30):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout is not None
        for _ in range(told_before_kill):
            told = int(writer.stdout.readline())
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        journal = Journal(tmp_path, "mesh")
        intent = journal.read()
        assert intent is not None
        assert intent.orders >= told
        assert intent.orders == intent.transactions
        assert journal.history(after=-1)[0]["reason"] == str(intent.orders)
        journal.close()
