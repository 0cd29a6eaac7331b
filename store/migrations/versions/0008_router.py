"""The grounds of decisions, which those of the same plan and the same class share."""

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


def downgrade() -> None:
    raise NotImplementedError("the ledger goes forward only; restore a backup to go back")
