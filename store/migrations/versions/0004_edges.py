"""Edges know what they hold back and whether they still do, so that a wait is looked up without its jobs."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from store.column_types import CleanText

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("edges", sa.Column("gate", CleanText(), server_default=sa.text("'start'"), nullable=False))
    op.add_column("edges", sa.Column("state", CleanText(), server_default=sa.text("'open'"), nullable=False))
    op.create_index("ix_edges_waits", "edges", ["child_id", "gate", "state", "parent_id"])
    stage = "(SELECT stage FROM jobs WHERE jobs.id = edges.parent_id)"
    op.execute(
        f"UPDATE edges SET state = CASE WHEN {stage} = 'shipped' THEN 'done' "  # noqa: S608 - our own text
        f"WHEN until = 'testing' AND {stage} = 'testing' THEN 'done' "
        f"WHEN {stage} IN ('failed', 'dead_letter', 'cancelled') THEN 'failed' ELSE 'open' END"
    )
    # Until now a job that waited for its parents had a workflow; 'parents' means from here on that it has none yet.
    op.execute("UPDATE jobs SET held = 'workflow' WHERE held = 'parents'")


def downgrade() -> None:
    raise NotImplementedError("the ledger goes forward only; restore a backup to go back")
