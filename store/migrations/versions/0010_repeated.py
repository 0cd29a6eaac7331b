"""Where a job's workflow is with its newest record, for a workflow task that is done again."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from store.column_types import Json

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("decided", Json()))


def downgrade() -> None:
    raise NotImplementedError("the ledger goes forward only; restore a backup to go back")
