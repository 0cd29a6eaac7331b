"""Attempts whose lease the ledger keeps, since Temporal does not know them any more."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from store.column_types import UtcDateTime

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("leases", sa.Column("confirmed_at", UtcDateTime()))
    op.add_column("leases", sa.Column("adopted_at", UtcDateTime()))


def downgrade() -> None:
    raise NotImplementedError("the ledger goes forward only; restore a backup to go back")
