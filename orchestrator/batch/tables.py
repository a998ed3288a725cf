"""The ledger's tables, the same on SQLite and PostgreSQL.

`migrations/` makes them; a test compares both. Times are seconds since 1970.
"""

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)

metadata = MetaData()

# SQLite numbers rows itself only where the key is called INTEGER.
_Serial = BigInteger().with_variant(Integer(), "sqlite")

runner = Table(
    "runner",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("term", BigInteger, nullable=False),
    Column("seen_at", Float, nullable=False),
)
"""One row. Every runner takes a higher term than the one before, and writes under it only."""

files = Table(
    "files",
    metadata,
    Column("seq", _Serial, primary_key=True, autoincrement=True),
    Column("id", String(64), nullable=False, unique=True),
    Column("owner", String(64), nullable=False),
    Column("filename", Text, nullable=False),
    Column("purpose", String(32), nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("digest", String(64), nullable=False, index=True),
    Column("created_at", Float, nullable=False),
    Column("expires_at", Float),
)

jobs = Table(
    "jobs",
    metadata,
    Column("seq", _Serial, primary_key=True, autoincrement=True),
    Column("id", String(64), nullable=False, unique=True),
    Column("owner", String(64), nullable=False),
    Column("endpoint", String(64), nullable=False),
    Column("input_file", String(64), nullable=False, index=True),
    Column("output_file", String(64)),
    Column("error_file", String(64)),
    Column("completion_window", String(16), nullable=False),
    Column("metadata", Text, nullable=False),
    Column("errors", Text, nullable=False),
    Column("status", String(16), nullable=False, index=True),
    Column("outcome", String(16), nullable=False),
    Column("priority", Integer, nullable=False),
    Column("run_between", String(16)),
    Column("paused", Boolean, nullable=False),
    Column("pause_reason", Text, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("expires_at", Float, nullable=False),
    Column("in_progress_at", Float),
    Column("finalizing_at", Float),
    Column("completed_at", Float),
    Column("failed_at", Float),
    Column("expired_at", Float),
    Column("cancelling_at", Float),
    Column("cancelled_at", Float),
    Column("total", BigInteger, nullable=False),
    Column("completed", BigInteger, nullable=False),
    Column("failed", BigInteger, nullable=False),
    Column("recomputed", BigInteger, nullable=False),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("completion_tokens", BigInteger, nullable=False),
    Column("checked_lines", BigInteger, nullable=False),
    Column("checked_bytes", BigInteger, nullable=False),
    Column("cleaned", Boolean, nullable=False),
)
"""checked_*: how far the input file is validated. recomputed: leases that a dead runner held.
cleaned: the rows of its requests are gone, their lines are in its files."""

requests = Table(
    "requests",
    metadata,
    Column("job", BigInteger, primary_key=True, autoincrement=False),
    Column("line", BigInteger, primary_key=True, autoincrement=False),
    Column("custom_id", Text, nullable=False),
    Column("offset", BigInteger, nullable=False),
    Column("length", Integer, nullable=False),
    Column("prefix", LargeBinary(16), nullable=False),
    Column("state", SmallInteger, nullable=False),
    Column("ready_at", Float, nullable=False),
    Column("leased_until", Float),
    Column("attempts", Integer, nullable=False),
    Column("engines_lost", Integer, nullable=False),
    UniqueConstraint("job", "custom_id", name="requests_custom_id"),
    Index("requests_order", "job", "state", "prefix", "line"),
    Index(
        "requests_suspect",
        "job",
        "line",
        sqlite_where=text("engines_lost >= 2"),
        postgresql_where=text("engines_lost >= 2"),
    ),
    sqlite_with_rowid=False,
)
"""offset, length: of the line in the input file, in bytes. prefix: `prefix.prefix_key`."""

results = Table(
    "results",
    metadata,
    Column("job", BigInteger, primary_key=True, autoincrement=False),
    Column("line", BigInteger, primary_key=True, autoincrement=False),
    Column("ok", Boolean, nullable=False),
    Column("answer", LargeBinary, nullable=False),
)
"""The lines of output (ok) and error files. `line` stands for the custom id, which is the only one
of its kind in a job (`requests_custom_id`); so the key makes a second answer impossible."""
