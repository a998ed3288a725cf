"""The ledger's first tables."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_Serial = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "runner",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("term", sa.BigInteger, nullable=False),
        sa.Column("seen_at", sa.Float, nullable=False),
    )
    op.execute("INSERT INTO runner (id, term, seen_at) VALUES (1, 0, 0)")
    op.create_table(
        "files",
        sa.Column("seq", _Serial, primary_key=True, autoincrement=True),
        sa.Column("id", sa.String(64), nullable=False, unique=True),
        sa.Column("owner", sa.String(64), nullable=False),
        sa.Column("filename", sa.Text, nullable=False),
        sa.Column("purpose", sa.String(32), nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
        sa.Column("digest", sa.String(64), nullable=False, index=True),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("expires_at", sa.Float),
    )
    op.create_table(
        "jobs",
        sa.Column("seq", _Serial, primary_key=True, autoincrement=True),
        sa.Column("id", sa.String(64), nullable=False, unique=True),
        sa.Column("owner", sa.String(64), nullable=False),
        sa.Column("endpoint", sa.String(64), nullable=False),
        sa.Column("input_file", sa.String(64), nullable=False, index=True),
        sa.Column("output_file", sa.String(64)),
        sa.Column("error_file", sa.String(64)),
        sa.Column("completion_window", sa.String(16), nullable=False),
        sa.Column("metadata", sa.Text, nullable=False),
        sa.Column("errors", sa.Text, nullable=False),
        sa.Column("status", sa.String(16), nullable=False, index=True),
        sa.Column("outcome", sa.String(16), nullable=False),
        sa.Column("priority", sa.Integer, nullable=False),
        sa.Column("run_between", sa.String(16)),
        sa.Column("paused", sa.Boolean, nullable=False),
        sa.Column("pause_reason", sa.Text, nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("expires_at", sa.Float, nullable=False),
        *(
            sa.Column(f"{state}_at", sa.Float)
            for state in (
                "in_progress",
                "finalizing",
                "completed",
                "failed",
                "expired",
                "cancelling",
                "cancelled",
            )
        ),
        *(
            sa.Column(name, sa.BigInteger, nullable=False)
            for name in (
                "total",
                "completed",
                "failed",
                "recomputed",
                "prompt_tokens",
                "completion_tokens",
                "checked_lines",
                "checked_bytes",
            )
        ),
        sa.Column("cleaned", sa.Boolean, nullable=False),
    )
    op.create_table(
        "requests",
        sa.Column("job", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("line", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("custom_id", sa.Text, nullable=False),
        sa.Column("offset", sa.BigInteger, nullable=False),
        sa.Column("length", sa.Integer, nullable=False),
        sa.Column("prefix", sa.LargeBinary(16), nullable=False),
        sa.Column("state", sa.SmallInteger, nullable=False),
        sa.Column("ready_at", sa.Float, nullable=False),
        sa.Column("leased_until", sa.Float),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("engines_lost", sa.Integer, nullable=False),
        sa.UniqueConstraint("job", "custom_id", name="requests_custom_id"),
        sqlite_with_rowid=False,
    )
    op.create_index("requests_order", "requests", ["job", "state", "prefix", "line"])
    suspect = sa.text("engines_lost >= 2")
    op.create_index(
        "requests_suspect",
        "requests",
        ["job", "line"],
        sqlite_where=suspect,
        postgresql_where=suspect,
    )
    op.create_table(
        "results",
        sa.Column("job", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("line", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("ok", sa.Boolean, nullable=False),
        sa.Column("answer", sa.LargeBinary, nullable=False),
    )


def downgrade() -> None:
    for table in ("results", "requests", "jobs", "files", "runner"):
        op.drop_table(table)
