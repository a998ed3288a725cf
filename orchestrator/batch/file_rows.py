"""The files that the ledger knows. Contents are in a `content.ContentStore`.

Two files of the same bytes share one content. It is removed with the last of them, under a lock
that adding a file takes too: a file that is being added never loses its content.
"""

import secrets
from collections.abc import Callable
from dataclasses import asdict

from sqlalchemy import Connection, delete, func, insert, select

from orchestrator.batch.database import Database, lock
from orchestrator.batch.pages import Page, PageQuery, UnknownCursorError
from orchestrator.batch.records import FileRecord
from orchestrator.batch.states import FINISHED
from orchestrator.batch.tables import files, jobs

_LOCK = 0x66696C65


class FileInUseError(Exception):
    """A job that is not finished needs the file."""


def new_file_id() -> str:
    return f"file-{secrets.token_hex(16)}"


class FileRows:
    """Files by id; `owner` None stands for everybody's."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, file: FileRecord, has_content: Callable[[str], bool]) -> bool:
        """Register a file whose content was stored; False where that was removed meanwhile, and
        has to be stored again."""
        with self._database.write() as connection:
            return self.add_in(connection, file, has_content)

    def add_in(
        self, connection: Connection, file: FileRecord, has_content: Callable[[str], bool]
    ) -> bool:
        """`add` as a part of a larger transaction."""
        lock(connection, _LOCK)
        if not has_content(file.digest):
            return False
        connection.execute(insert(files).values(**asdict(file)))
        return True

    def get(self, file_id: str, owner: str | None = None) -> FileRecord | None:
        with self._database.read() as connection:
            row = connection.execute(select(files).where(files.c.id == file_id)).one_or_none()
        if row is None or (owner is not None and row.owner != owner):
            return None
        return FileRecord.from_row(row)

    def page(self, owner: str, query: PageQuery, purpose: str | None = None) -> Page[FileRecord]:
        """Raises `UnknownCursorError`."""
        wanted = select(files).where(files.c.owner == owner)
        if purpose is not None:
            wanted = wanted.where(files.c.purpose == purpose)
        with self._database.read() as connection:
            after = None
            if query.after is not None:
                cursor = select(files.c.seq).where(
                    files.c.id == query.after, files.c.owner == owner
                )
                after = connection.execute(cursor).scalar_one_or_none()
                if after is None:
                    raise UnknownCursorError(query.after)
            rows = connection.execute(query.apply(wanted, files.c.seq, after)).all()
        return query.page([FileRecord.from_row(row) for row in rows])

    def stored_bytes(self, owner: str) -> int:
        """Of all files of one owner."""
        with self._database.read() as connection:
            total = select(func.coalesce(func.sum(files.c.bytes), 0)).where(files.c.owner == owner)
            return int(connection.execute(total).scalar_one())

    def expired(self, now_s: float) -> list[FileRecord]:
        with self._database.read() as connection:
            rows = connection.execute(select(files).where(files.c.expires_at < now_s)).all()
        return [FileRecord.from_row(row) for row in rows]

    def delete(self, file: FileRecord, remove_content: Callable[[str], None]) -> None:
        """Forget a file, and its content where no other has the same.

        Raises:
            FileInUseError: an unfinished job reads it.
        """
        with self._database.write() as connection:
            lock(connection, _LOCK)
            users = select(jobs.c.id).where(
                jobs.c.input_file == file.id, jobs.c.status.not_in(FINISHED)
            )
            if (job := connection.execute(users.limit(1)).scalar_one_or_none()) is not None:
                raise FileInUseError(job)
            connection.execute(delete(files).where(files.c.id == file.id))
            others = select(files.c.id).where(files.c.digest == file.digest).limit(1)
            if connection.execute(others).scalar_one_or_none() is None:
                remove_content(file.digest)
