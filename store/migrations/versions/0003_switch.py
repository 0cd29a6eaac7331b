"""The kill switch, limits of work in progress, drains and quarantines of factories."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from store.column_types import CleanText, Json, UtcDateTime

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    _halts()
    _limits()
    op.add_column("factories", sa.Column("drain", Json()))
    op.add_column("factories", sa.Column("quarantine", Json()))
    op.add_column("factories", sa.Column("released_at", UtcDateTime()))
    op.create_index("ix_runs_ended_at", "runs", ["ended_at"])


def _halts() -> None:
    op.create_table(
        "halts",
        sa.Column("epoch", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("product_id", CleanText(), nullable=False),
        sa.Column("scope", CleanText(), nullable=False),
        sa.Column("name", CleanText(), server_default=sa.text("''"), nullable=False),
        sa.Column("origin", CleanText(), nullable=False),
        sa.Column("stop_running", sa.Boolean(), nullable=False),
        sa.Column("actor", CleanText(), server_default=sa.text("''"), nullable=False),
        sa.Column("reason", CleanText(), server_default=sa.text("''"), nullable=False),
        sa.Column("at", UtcDateTime(), nullable=False),
        sa.Column("released_epoch", sa.Integer()),
        sa.Column("released_at", UtcDateTime()),
        sa.Column("released_by", CleanText(), server_default=sa.text("''"), nullable=False),
        sa.PrimaryKeyConstraint("epoch", name="pk_halts"),
        sa.CheckConstraint("scope IN ('fleet', 'product', 'factory', 'engine')", name=op.f("ck_halts_scope")),
        sa.CheckConstraint("origin IN ('operator', 'sentinel')", name=op.f("ck_halts_origin")),
    )
    op.create_index("ix_halts_released_epoch", "halts", ["released_epoch"])
    op.create_index(
        "uq_halts_in_force",
        "halts",
        ["scope", "name", "origin"],
        unique=True,
        sqlite_where=sa.text("released_epoch IS NULL"),
        postgresql_where=sa.text("released_epoch IS NULL"),
    )


def _limits() -> None:
    op.create_table(
        "limits",
        sa.Column("kind", CleanText(), nullable=False),
        sa.Column("name", CleanText(), nullable=False),
        sa.Column("product_id", CleanText(), nullable=False),
        sa.Column("jobs", sa.Integer(), nullable=False),
        sa.Column("set_by", CleanText(), server_default=sa.text("''"), nullable=False),
        sa.Column("set_at", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("kind", "name", name="pk_limits"),
        sa.CheckConstraint("kind IN ('product', 'engine')", name=op.f("ck_limits_kind")),
        sa.CheckConstraint("jobs >= 1", name=op.f("ck_limits_jobs")),
    )


def downgrade() -> None:
    raise NotImplementedError("the ledger goes forward only; restore a backup to go back")
