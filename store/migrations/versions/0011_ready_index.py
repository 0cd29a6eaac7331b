"""An index from which the waiting jobs are read without their rows, which are wide."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.drop_index("ix_jobs_ready", "jobs")
    op.create_index(
        "ix_jobs_ready",
        "jobs",
        ["stage", "held", "id", "queued_at", "excluded_factories", "overtaken", "last_factory"],
        sqlite_where=sa.text("stage = 'queued' AND held IS NULL"),
        postgresql_where=sa.text("stage = 'queued' AND held IS NULL"),
    )


def downgrade() -> None:
    raise NotImplementedError("the ledger goes forward only; restore a backup to go back")
