"""What an attempt delivered stands in its run; the lease's copy is not written any more, and goes."""

from __future__ import annotations

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.drop_column("leases", "accepted_result")


def downgrade() -> None:
    raise NotImplementedError("the ledger goes forward only; restore a backup to go back")
