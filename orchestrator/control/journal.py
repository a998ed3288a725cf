"""The journal: intent and history of one mesh in a SQLite file that survives the controller.

One row holds the intent's small parts, one each its large ones (epoch, plan, transaction, keys);
`write` changes, in one SQLite transaction, only the parts that differ, and adds the history. So a
crash leaves either the whole step or nothing of it, and a step is on disk before anything is done.

The file is in WAL mode with full synchronisation. A lock file beside it keeps a second controller
away for as long as the first one's process lives.
"""

import fcntl
import json
import logging
import os
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from orchestrator.control.actions import Note
from orchestrator.control.codec import PARTS, part_from_json, part_to_json
from orchestrator.control.state import Intent

log = logging.getLogger(__name__)

SCHEMA_VERSION = 2
HISTORY_ROWS = 10_000
"""Lines of history kept; older ones go a thousand at a time."""

_MIGRATIONS: dict[int, str] = {
    0: """
    CREATE TABLE intent (part TEXT PRIMARY KEY, body TEXT NOT NULL);
    CREATE TABLE history (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        wall_s REAL NOT NULL,
        subject TEXT NOT NULL,
        step TEXT NOT NULL,
        transaction_id INTEGER NOT NULL,
        reason TEXT NOT NULL,
        figures TEXT NOT NULL
    );
    """,
    # Version 2 knows rules, cordoned nodes, rolling restarts and places that are to restart.
    1: """
    INSERT OR IGNORE INTO intent
        SELECT column1, column2
        FROM (VALUES ('cordoned_nodes', '[]'), ('rules', '[]'), ('rolling', 'null'))
        WHERE EXISTS (SELECT 1 FROM intent);
    """,
}
"""Schema version -> what leads from it to the next."""


class JournalError(Exception):
    """The journal cannot be read or written; the message says why and what to do."""


class DamagedJournalError(JournalError):
    """What the file holds is no journal, or not all of one."""


class Journal:
    """One mesh's journal, held by one controller. `wall_s` is only shown, never decided upon."""

    def __init__(self, folder: Path, mesh: str) -> None:
        """Open or create `folder`/`mesh`.journal.

        Raises:
            DamagedJournalError: the file is damaged.
            JournalError: another controller holds it, the disk refuses, or the file is of a newer
                version.
        """
        self.path = folder / f"{mesh}.journal"
        self._lock = _lock(folder / f"{mesh}.lock")
        self._written: dict[str, object] = {}
        try:
            self._connection = _open(self.path)
        except sqlite3.Error as error:
            self._lock.close()
            raise _unusable(self.path, error) from error
        except JournalError:
            self._lock.close()
            raise

    def read(self) -> Intent | None:
        """The intent last written; None in a new journal.

        Raises:
            DamagedJournalError: the file is damaged.
        """
        try:
            rows = self._connection.execute("SELECT part, body FROM intent").fetchall()
            parts = {part: part_from_json(part, body) for part, body in rows}
            missing = [part for part in PARTS if parts and part not in parts]
            if missing:
                raise ValueError(f"there is no {missing[0]!r} in it")
            intent = Intent(**parts) if parts else None
        except (sqlite3.Error, ValueError, KeyError, TypeError) as error:
            raise _unusable(self.path, error) from error
        if intent is None:
            return None
        self._written = {part: getattr(intent, part) for part in PARTS}
        return intent

    def write(self, intent: Intent, notes: Sequence[Note], wall_s: float) -> None:
        """Make this the intent, and add to the history: all of it or nothing.

        Raises:
            JournalError: the disk is full or refuses; the journal is as it was before.
        """
        changed = [
            part
            for part in PARTS
            if part not in self._written or getattr(intent, part) is not self._written[part]
        ]
        rows = [(part, part_to_json(part, getattr(intent, part))) for part in changed]
        try:
            with self._connection:
                self._connection.execute("BEGIN IMMEDIATE")
                self._connection.executemany("INSERT OR REPLACE INTO intent VALUES (?, ?)", rows)
                self._connection.executemany(_ADD_NOTE, [_row(note, wall_s) for note in notes])
                self._forget_old()
        except sqlite3.Error as error:
            raise JournalError(_say(self.path, error)) from error
        self._written |= {part: getattr(intent, part) for part in changed}

    def history(self, after: int = 0, limit: int = 100) -> list[dict[str, object]]:
        """Lines of history after number `after`, oldest first; negative: the last `-after`."""
        columns = ("number", "wall_s", "subject", "step", "transaction", "reason", "figures")
        order, bound = ("ASC", after) if after >= 0 else ("DESC", 0)
        rows = self._connection.execute(
            "SELECT number, wall_s, subject, step, transaction_id, reason, figures FROM history "
            f"WHERE number > ? ORDER BY number {order} LIMIT ?",
            (bound, limit if after >= 0 else -after),
        ).fetchall()
        found = [
            dict(zip(columns, (*row, json.loads(figures)), strict=True)) for *row, figures in rows
        ]
        return found if after >= 0 else found[::-1]

    def close(self) -> None:
        self._connection.close()
        self._lock.close()

    def _forget_old(self) -> None:
        (last,) = self._connection.execute("SELECT max(number) FROM history").fetchone()
        if last is not None and last % 1000 == 0:
            self._connection.execute(
                "DELETE FROM history WHERE number <= ?", (last - HISTORY_ROWS,)
            )


_ADD_NOTE = (
    "INSERT INTO history (wall_s, subject, step, transaction_id, reason, figures) "
    "VALUES (?, ?, ?, ?, ?, ?)"
)


def _row(note: Note, wall_s: float) -> tuple[float, str, str, int, str, str]:
    figures = json.dumps(dict(note.figures))
    return wall_s, note.subject, note.step, note.transaction, note.reason, figures


def _lock(path: Path) -> IO[str]:
    """Hold the lock file, which the kernel gives free when this process ends, however it ends."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        held = path.open("a+")
    except OSError as error:
        raise JournalError(
            f"{path} cannot be opened ({error.strerror}): set cluster.state_dir to "
            "a folder you can write to"
        ) from error
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        held.seek(0)
        owner = held.read().strip() or "unknown"
        held.close()
        raise JournalError(
            f"{path} is held by another controller (process {owner}): a mesh has one; stop that "
            "one, or give this mesh another name"
        ) from None
    held.truncate(0)
    held.write(str(os.getpid()))
    held.flush()
    return held


def _open(path: Path) -> sqlite3.Connection:
    # Autocommit: every transaction here is begun by hand.
    connection = sqlite3.connect(path, isolation_level=None, timeout=5.0, check_same_thread=False)
    try:
        _set_up(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection


def _set_up(connection: sqlite3.Connection, path: Path) -> None:
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if found != "ok":
        raise _unusable(path, ValueError(found))
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > SCHEMA_VERSION:
        raise JournalError(
            f"{path} has schema {version}, this version writes {SCHEMA_VERSION}: use the version "
            "of ExpertMesh that wrote it, or newer"
        )
    for step in range(version, SCHEMA_VERSION):
        # One script is one transaction: a crash in between leaves the version before.
        connection.executescript(
            f"BEGIN IMMEDIATE; {_MIGRATIONS[step]} PRAGMA user_version = {step + 1}; COMMIT;"
        )


def set_aside(folder: Path, mesh: str) -> Path:
    """Move a damaged journal away, so that a new one can begin; returns where it is now."""
    path = folder / f"{mesh}.journal"
    number = sum(1 for _ in folder.glob(f"{mesh}.journal.damaged-*[0-9]"))
    aside = folder / f"{mesh}.journal.damaged-{number}"
    for suffix in ("", "-wal", "-shm"):
        part = path.with_name(path.name + suffix)
        if part.exists():
            part.rename(aside.with_name(aside.name + suffix))
    return aside


def _unusable(path: Path, error: Exception) -> JournalError:
    """As an error of the file where it is, and of the disk otherwise."""
    text = _say(path, error)
    return DamagedJournalError(text) if text.endswith(_MOVE_AWAY) else JournalError(text)


_MOVE_AWAY = "move it away; the mesh goes on with what its components describe"


def _say(path: Path, error: Exception) -> str:
    text = str(error)
    if "full" in text:
        return f"{path} cannot be written: the disk is full; free some space"
    if "readonly" in text or "read-only" in text:
        return f"{path} cannot be written: {text}; make the folder writable"
    return f"{path} is damaged or cannot be used ({text}): {_MOVE_AWAY}"
