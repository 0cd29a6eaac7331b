"""Wishes to stop an attempt, as the factory link tells them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from store.column_types import UtcDateTime

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("leases", sa.Column("stop_requested_at", UtcDateTime()))


def downgrade() -> None:
    raise NotImplementedError("the ledger goes forward only; restore a backup to go back")
