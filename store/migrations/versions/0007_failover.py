"""Engines that are left alone at a place for a while."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from store.column_types import CleanText, UtcDateTime

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("stations", sa.Column("cooldown_until", UtcDateTime()))
    op.add_column("stations", sa.Column("cooldown_reason", CleanText(), nullable=False, server_default=sa.text("''")))
    op.add_column("runs", sa.Column("cooldown_until", UtcDateTime()))


def downgrade() -> None:
    raise NotImplementedError("the ledger goes forward only; restore a backup to go back")
