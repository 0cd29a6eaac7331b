"""Grounds that decisions share; who is paused for a more urgent job; turns that all who dispatch share."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from store.column_types import CleanText, UtcDateTime

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "grounds",
        sa.Column("sha256", CleanText(), nullable=False),
        sa.Column("product_id", CleanText(), nullable=False),
        sa.Column("document", CleanText(), nullable=False),
        sa.Column("at", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("sha256", name=op.f("pk_grounds")),
    )
    op.execute("UPDATE runs SET decision = '{}'")  # written down in full, with the weights out of order

    op.add_column("jobs", sa.Column("preempted", sa.Integer(), server_default=sa.text("0"), nullable=False))
    op.add_column("leases", sa.Column("yields_to", CleanText(), server_default=sa.text("''"), nullable=False))

    op.add_column("factories", sa.Column("passed_over", sa.Integer(), server_default=sa.text("0"), nullable=False))
    op.create_table(
        "turns",
        sa.Column("kind", CleanText(), nullable=False),
        sa.Column("priority", CleanText(), nullable=False),
        sa.Column("name", CleanText(), nullable=False),
        sa.Column("product_id", CleanText(), nullable=False),
        sa.Column("level", sa.BigInteger(), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("kind IN ('product', 'factory')", name=op.f("ck_turns_kind")),
        sa.PrimaryKeyConstraint("kind", "priority", "name", name=op.f("pk_turns")),
    )
    op.create_index("ix_turns_number", "turns", ["number"], unique=True)


def downgrade() -> None:
    raise NotImplementedError("the ledger goes forward only; restore a backup to go back")
