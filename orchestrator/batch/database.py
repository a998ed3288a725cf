"""Opens the ledger's database: SQLite in WAL mode, or PostgreSQL.

A writing transaction on SQLite begins with BEGIN IMMEDIATE, so that two processes never find out at
their commit that they cannot both go on. Whoever opens the database first migrates it, in one
transaction, while others wait.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, create_engine, event, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError
from sqlalchemy.sql.schema import Table

from orchestrator.errors import UserError

BUSY_TIMEOUT_S = 30.0
"""How long a writer waits for another process's transaction; those take milliseconds."""

_WRITES = "expertmesh_writes"
_MIGRATION_LOCK = 0x6578706D
_MIGRATIONS = Path(__file__).parent / "migrations"


class StorageFullError(Exception):
    """The disk of the ledger or of its files is full; nothing was changed."""


class Database:
    """Transactions on one database. Safe to use from several threads."""

    def __init__(self, url: str, durable: bool = True) -> None:
        """durable: on SQLite, whether a commit survives the loss of power. Without it the last
        commits may be lost then, which for answers means to compute them again.

        Raises:
            UserError: the URL cannot be read, or nothing answers there.
        """
        self.url = _with_driver(url)
        is_sqlite = self.url.startswith("sqlite")
        options: dict[str, Any] = (
            {"connect_args": {"timeout": BUSY_TIMEOUT_S, "check_same_thread": False}}
            if is_sqlite
            else {"pool_pre_ping": True}
        )
        self._engine = create_engine(self.url, **options)
        if is_sqlite:
            _set_up_sqlite(self._engine, durable)
        try:
            self._migrate()
        except OperationalError as error:
            self._engine.dispose()
            place = make_url(self.url).render_as_string(hide_password=True)
            raise UserError(
                f"the batch ledger {place} cannot be opened: {_first_line(error)}",
                "set batch.database, or cluster.state_dir to a folder that can be written",
            ) from error

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """One consistent look."""
        with self._engine.connect() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """One transaction: all of it or nothing.

        Raises:
            StorageFullError: there was no room to write it.
        """
        try:
            with self._engine.execution_options(**{_WRITES: True}).begin() as connection:
                yield connection
        except DBAPIError as error:
            if _is_full(error):
                raise StorageFullError(_first_line(error)) from error
            raise

    def close(self) -> None:
        self._engine.dispose()

    def _migrate(self) -> None:
        config = Config()
        config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
        with self.write() as connection:
            lock(connection, _MIGRATION_LOCK)
            config.attributes["connection"] = connection
            command.upgrade(config, "head")


def sqlite_url(path: Path) -> str:
    return f"sqlite:///{path}"


def lock(connection: Connection, number: int) -> None:
    """Keep others who ask for `number` out until this transaction ends. On SQLite every writer
    keeps all others out already."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:number)"), {"number": number})


def insert_new(connection: Connection, table: Table) -> Any:
    """An INSERT that leaves out rows whose key is there already."""
    make = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    return make(table).on_conflict_do_nothing()


def _with_driver(url: str) -> str:
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise UserError(
            "batch.database is no database URL", "write postgresql://user@host/database"
        ) from error
    if parsed.drivername in {"postgresql", "postgres"}:
        parsed = parsed.set(drivername="postgresql+psycopg")
    return parsed.render_as_string(hide_password=False)


def _set_up_sqlite(engine: Any, durable: bool) -> None:
    @event.listens_for(engine, "connect")
    def on_connect(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # sqlite3 begins no transactions by itself
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
        connection.execute("PRAGMA foreign_keys=ON")
        connection.execute("PRAGMA cache_size=-16384")  # 16 MiB

    @event.listens_for(engine, "begin")
    def on_begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get(_WRITES, False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _is_full(error: DBAPIError) -> bool:
    said = str(error.orig).lower()
    return "disk is full" in said or "no space left" in said or "disk i/o error" in said


def _first_line(error: DBAPIError) -> str:
    return str(error.orig).strip().splitlines()[0]
